"""The embed command: rows fit their names, bad files are left out on request, files are read as documented."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.images import write_png
from sce_fast.data.faults import BadFilesError
from sce_fast.evaluate import load_features
from sce_fast.export import METADATA, Description, open_backbone
from sce_fast.tools.embed import embed
from sce_fast.util.files import save_tensors

DOCS = Path(__file__).parents[2] / "docs" / "training.md"


def write_backbone(path, network, description):
    save_tensors(path, network.state_dict(), {METADATA: json.dumps(description)})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Write an untrained backbone."""
    path = tmp_path_factory.mktemp("exported") / "backbone.safetensors"
    torch.manual_seed(0)
    described = Description(
        backbone="resnet18", width=8, small_input=True, mean=(0.5,) * 3, std=(0.25,) * 3, resize=32, crop=32,
        background="black", momentum=False, step=0,
    )  # fmt: skip
    write_backbone(path, described.build(), vars(described))
    return path


@pytest.fixture
def damaged(tmp_path, photo_folder) -> dict[str, str]:
    """Damage a copy of the photographs in every way; return name → reason."""
    data = tmp_path / "data"
    shutil.copytree(photo_folder, data)
    for name in ("flower/001.jpg", "temple/000.jpg", "temple/022.jpg"):  # with good files in the same batches
        (data / name).write_bytes((data / name).read_bytes()[:-200])
    (data / "flower" / "003.jpg").write_bytes(b"")
    (data / "turn").symlink_to("turn")
    cut = "truncated or damaged"
    return {
        "turn": "a link to itself", "flower/001.jpg": cut, "flower/003.jpg": "empty", "temple/000.jpg": cut,
        "temple/022.jpg": cut,
    }  # fmt: skip


def test_skip_bad_leaves_bad_files_out_and_lists_them(tmp_path, exported, photo_folder, damaged, capsys):
    whole = load_features(embed(exported, photo_folder, out=tmp_path / "whole.safetensors", device="cpu"))
    row_of = dict(zip(whole.names, whole.features, strict=True))
    out = tmp_path / "features.safetensors"
    assert embed(exported, tmp_path / "data", out=out, device="cpu", batch_size=5, skip_bad=True) == out
    found = load_features(out)
    assert found.names == [name for name in whole.names if name not in damaged]
    assert found.labels.tolist() == [["flower", "temple"].index(os.path.dirname(name)) for name in found.names]
    for name, row in zip(found.names, found.features, strict=True):
        assert torch.allclose(row, row_of[name], atol=1e-5), name
    listed = (tmp_path / "features.skipped.txt").read_text().splitlines()
    assert listed == [f"{tmp_path}/data/{name}\t{reason}" for name, reason in damaged.items()]
    said = capsys.readouterr().err
    assert re.search(
        r"Warning: 5 of 24 files cannot be used \(3 truncated.*features.skipped.txt lists them", said, re.S
    )


def test_without_skip_bad_nothing_is_written(tmp_path, exported, damaged):
    out = tmp_path / "features.safetensors"
    advice = "With --skip-bad, embed leaves bad files out"
    with pytest.raises(ValueError, match=rf"(?s)flower/003.jpg: empty.*{advice}"):
        embed(exported, tmp_path / "data", out=out, device="cpu")
    (tmp_path / "data" / "flower" / "003.jpg").unlink()
    (tmp_path / "data" / "turn").unlink()
    with pytest.raises(BadFilesError, match=rf"(?s)flower/001.jpg: truncated.*{advice}"):
        embed(exported, tmp_path / "data", out=out, device="cpu")
    assert not out.exists()


def test_skip_bad_without_bad_files_lists_none(tmp_path, exported, photo_folder):
    settings = {"out": tmp_path / "features.safetensors", "device": "cpu", "skip_bad": True}
    embed(exported, photo_folder, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["features.safetensors"]
    (tmp_path / "features.safetensors").unlink()
    (tmp_path / "features.skipped.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"features.skipped.txt exists already"):
        embed(exported, photo_folder, **settings)
    for i in range(2):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"(?s)2 of 2 files cannot be used \(2 empty\).*nothing to embed"):
        embed(exported, tmp_path / "bad", out=tmp_path / "none.safetensors", device="cpu", skip_bad=True)
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize("reader", ["load_features", "load_file"])
def test_the_documented_ways_to_read_a_feature_file(tmp_path, exported, photo_folder, reader):
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if reader in code)
    path = embed(exported, photo_folder, out=tmp_path / "features.safetensors", device="cpu")
    variables: dict = {}
    exec(example.replace("runs/photos/features_DIR.safetensors", str(path)), variables)
    expected = load_features(path)
    assert variables["names"] == expected.names
    assert torch.equal(variables["features"], expected.features)


def test_the_background_of_a_backbone_is_that_of_its_training(tmp_path, exported):
    """Files of earlier versions do not name a background: their networks were trained on hidden pixels."""
    write_png(tmp_path / "data" / "a.png", np.full((32, 32, 3), 0, dtype=np.uint8))
    hidden = np.full((32, 32, 4), 255, dtype=np.uint8)
    hidden[:, :, 3] = 0
    Image.fromarray(hidden).save(tmp_path / "data" / "b.png")
    write_png(tmp_path / "data" / "c.png", np.full((32, 32, 3), 255, dtype=np.uint8))
    backbone = open_backbone(exported)
    for background, same in (("black", 0), ("white", 2), ("none", 2), (None, 2)):
        path = tmp_path / f"{background}.safetensors"
        description = {**vars(backbone.description), "background": background}
        if background is None:
            del description["background"]
        write_backbone(path, backbone.network, description)
        rows = load_features(embed(path, tmp_path / "data", out=tmp_path / f"{background}_rows", device="cpu")).features
        assert torch.equal(rows[1], rows[same]), background
