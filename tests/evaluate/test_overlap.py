"""Images that are in both sets of an evaluation."""

import os
import shutil

import numpy as np
import pytest
import torch

from helpers.images import write_png
from sce_fast.data.index import index_images
from sce_fast.evaluate import FeatureFile
from sce_fast.evaluate.overlap import shared_rows, shared_samples


@pytest.fixture
def folders(tmp_path):
    """Return two folders of four different images each, of equal names and lengths."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("a/0.png", "a/1.png", "b/2.png", "b/3.png"):
            write_png(tmp_path / part / name, random.integers(256, size=(8, 8, 3), dtype=np.uint8))
    return tmp_path / "train", tmp_path / "test"


def shared(train, test):
    return shared_samples(index_images(train), index_images(test))


def test_equal_names_alone_are_no_shared_samples(folders):
    train, test = folders
    assert (train / "a" / "0.png").stat().st_size == (test / "a" / "0.png").stat().st_size
    assert shared(train, test) == 0


def test_the_same_folder_links_and_copies_are_found(folders):
    train, test = folders
    assert shared(train, train) == 4
    os.link(train / "a" / "0.png", test / "a" / "hard.png")
    (test / "a" / "soft.png").symlink_to(train / "a" / "1.png")
    shutil.copy(train / "b" / "2.png", test / "a" / "2.png")
    assert shared(train, test) == 3
    (train.parent / "list.txt").write_text("train/a/0.png\tx\ntest/b/3.png\tx\n")
    assert shared(train, train.parent / "list.txt") == 1


def test_rows_are_shared_if_name_and_features_agree():
    features = torch.randn(4, 8)
    train = FeatureFile(features, ["a/0.png", "a/1.png", "b/2.png", "b/3.png"], None, [])
    again = FeatureFile(features * (1 + 1e-6), train.names, None, [])
    assert shared_rows(train, again) == 4
    moved = FeatureFile(features[[2, 3]], ["elsewhere/2.png", "4.png"], None, [])
    assert shared_rows(train, moved) == 1
    assert shared_rows(train, FeatureFile(torch.randn(4, 8), train.names, None, [])) == 0
