"""The scan command: what it says of odd folders, formats and list files, and in which words."""

import os

import numpy as np
import pytest
from PIL import Image

from helpers.images import write_png
from sce_fast.cli import main
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.tools.scan import scan

GREY = np.full((9, 13, 3), 128, dtype=np.uint8)
ALPHA = np.full((9, 13, 4), 128, dtype=np.uint8)


def test_scan_counts_transparent_images_and_other_files(tmp_path):
    write_png(tmp_path / "1.png", GREY)
    write_png(tmp_path / "2.png", ALPHA)
    Image.fromarray(GREY).save(tmp_path / "film.gif")
    (tmp_path / "notes").write_text("hello")
    text = scan(tmp_path).table()
    assert "\nimages with alpha (transparency): 1; --views.background sets the colour behind them\n" in text
    assert f"\n2 files in {tmp_path} are ignored (1 without an ending, 1 .gif)\n" in text
    assert "2 files decoded" in text


def test_scan_goes_on_after_a_link_to_itself(tmp_path, capsys):
    write_png(tmp_path / "1.png", GREY)
    (tmp_path / "turn").symlink_to("turn")
    with pytest.raises(SystemExit) as end:
        main(["scan", str(tmp_path), "--out", str(tmp_path / "bad.txt")])
    assert end.value.code == 1
    assert "1 bad files\na link to itself: 1\n  turn\n" in capsys.readouterr().out
    assert (tmp_path / "bad.txt").read_text() == f"{tmp_path}/turn\ta link to itself\n"


def test_training_warns_of_a_link_to_itself(tmp_path):
    for i in range(4):
        write_png(tmp_path / f"{i}.png", GREY)
    (tmp_path / "turn").symlink_to("turn")
    index = index_images(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 4 files cannot be used \(1 a link to itself\):\n  .*/turn: a link"):
        loader = TrainingLoader(index, RandomViews(index, (Augmentation(size=8),), seed=0), batch_size=4)
    assert len(next(loader).samples) == 4
    assert loader.bad_names == {"turn": "a link to itself"}


def test_pixels_that_the_decoder_does_not_know_are_no_damage(tmp_path):
    """In a batch with a bad file, good TIFFs stay good."""
    grey = np.arange(117, dtype=np.int32).reshape(9, 13)
    Image.fromarray(grey).save(tmp_path / "int32.tif")
    Image.fromarray(GREY).convert("1").save(tmp_path / "bilevel.tif")
    Image.fromarray(GREY).save(tmp_path / "good.tif")
    whole = (tmp_path / "int32.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:-20])
    double = write_double_tiff(tmp_path / "double.tif")
    (tmp_path / "double_cut.tif").write_bytes(double[:-20])
    found = scan(tmp_path)
    assert {os.path.basename(path): reason for path, reason in found.bad_files().items()} == {
        "bilevel.tif": "unsupported format",
        "cut.tif": "truncated or damaged",
        "double.tif": "unsupported format",
        "double_cut.tif": "truncated or damaged",
        "int32.tif": "unsupported format",
    }


def write_double_tiff(path) -> bytes:
    """Write a TIFF of 64-bit floats, which Pillow does not read either, and return its bytes."""
    pixels = np.zeros((9, 13), dtype="<f8").tobytes()
    entries = [
        (256, 4, 13), (257, 4, 9), (258, 3, 64), (259, 3, 1), (262, 3, 1), (273, 4, 8 + 2 + 12 * 10 + 4), (277, 3, 1),
        (278, 4, 9), (279, 4, len(pixels)), (339, 3, 3),
    ]  # fmt: skip
    directory = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    content = b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + directory + bytes(4) + pixels
    path.write_bytes(content)
    return content


def test_a_list_file_is_named(tmp_path, monkeypatch):
    write_png(tmp_path / "1.png", GREY)
    (tmp_path / "list.txt").write_text("1.png\n")
    monkeypatch.chdir(tmp_path)
    assert scan("list.txt").table().startswith("1 image files in list.txt\n")
    index = index_images("list.txt")
    with pytest.raises(ValueError, match=r"larger than the data set of 1 images in list.txt"):
        TrainingLoader(index, RandomViews(index, (Augmentation(),), seed=0), batch_size=2)
