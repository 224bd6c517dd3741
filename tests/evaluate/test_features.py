"""Feature files: what is written is read again, and files from elsewhere are checked."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.images import write_png
from sce_fast.data.index import index_images
from sce_fast.evaluate import load_features, save_features


def test_feature_file_keeps_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path / "data") + b"/\xe9t\xe9"
    for name in (b"/a.png", b"/\xff.png"):
        write_png(os.fsdecode(folder + name), np.zeros((4, 4, 3), dtype=np.uint8))
    index = index_images(tmp_path / "data")
    save_features(tmp_path / "features.safetensors", torch.eye(2), index)
    saved = load_features(tmp_path / "features.safetensors")
    assert saved.names == index.listing.names
    assert os.fsencode(saved.names[1]) == b"\xe9t\xe9/\xff.png"
    assert torch.equal(saved.features, torch.eye(2))
    assert saved.classes == [r"\xe9t\xe9"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features": torch.zeros(4)}, r"features have the shape \(4,\), expected \(4, F\)"),
        ({"features": torch.zeros(3, 2)}, r"features have the shape \(3, 2\), expected \(4, F\)"),
        ({"labels": torch.zeros(4)}, r"labels are torch.float32 \(4,\), expected int64 \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels go from 0 to 2, expected 0 to 1"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, "labels go from -1 to 1, expected 0 to 1"),
    ],
)
def test_feature_files_from_elsewhere_are_checked(tmp_path, tensors, message):
    path = tmp_path / "features.safetensors"
    good = {
        "features": torch.zeros(4, 2), "labels": torch.tensor([0, 1, 1, 0]), "name_ends": torch.arange(1, 5),
        "names": torch.frombuffer(bytearray(b"abcd"), dtype=torch.uint8),
    }  # fmt: skip
    save_file({**good, **tensors}, path, metadata={"classes": '["x", "y"]'})
    with pytest.raises(ValueError, match=message):
        load_features(path)
