"""The scan command: what it says of odd folders, formats and list files, and in which words."""

import os

import av
import numpy as np
import pytest
from PIL import Image

from helpers.images import write_png
from helpers.videos import write_video
from sce_fast.cli import main
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import index_images
from sce_fast.data.loader import TrainingLoader
from sce_fast.data.video.index import index_videos
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


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """Write images and videos of two classes; one of each kind decodes only in part. Return the folder."""
    root = tmp_path_factory.mktemp("mixed")
    for name in ("a/1.png", "b/2.png", "b/cut.png"):
        write_png(root / name, GREY)
    (root / "b" / "cut.png").write_bytes((root / "b" / "cut.png").read_bytes()[:-20])
    write_video(root / "a" / "good", frames=10)
    write_video(root / "a" / "irregular", "vp9", frames=4, times=[0, 30, 90, 100], rotation=90)
    path = write_video(root / "b" / "damaged", frames=30)
    with av.open(str(path)) as container:
        packet = next(packet for number, packet in enumerate(container.demux(video=0)) if number == 12)
    content = bytearray(path.read_bytes())
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    (root / "b" / "film.gif").write_bytes(b"GIF89a")
    return root


def test_scan_decodes_every_frame_of_videos(mixed_folder, tmp_path):
    found = scan(mixed_folder, only="videos", out=tmp_path / "bad.txt")
    damaged = f"{mixed_folder}/b/damaged.mp4"
    assert found.bad_files() == {damaged: "truncated or damaged"}
    assert (tmp_path / "bad.txt").read_text() == f"{damaged}\ttruncated or damaged\n"
    text = found.table()
    assert text.startswith(f"3 video files in {mixed_folder}\n2 classes of 1 to 2 files\n")
    assert "width × height: smallest 128 × 96, median 96 × 128, largest 96 × 128\n" in text
    assert "\nseconds: shortest 0.1, median 0.3, longest 0.4; 14 frames, 0.0 h\n" in text
    assert "\ncodecs: 1 h264, 1 vp9\n" in text
    assert "\nvideos with frames at irregular times: 1\nvideos that are turned when they are shown: 1\n" in text
    assert f"\n4 files in {mixed_folder} are ignored (3 .png, 1 .gif)\n" in text
    assert "\n3 files decoded in " in text
    assert text.endswith("\n\n1 bad files\ntruncated or damaged: 1\n  b/damaged.mp4")


@pytest.mark.parametrize(("codec", "ending", "rate"), [("vp9", "webm", 30), ("h264", "mkv", 60), ("h264", "flv", 24)])
def test_times_that_a_container_rounds_are_no_irregular_times(tmp_path, codec, ending, rate):
    write_video(tmp_path / "rounded", codec, frames=20, rate=rate, ending=ending)
    assert len(np.unique(np.diff(index_videos(tmp_path).timelines.variable[0]))) == 2
    text = scan(tmp_path, quick=True).table()
    assert f"frames per second: {rate}" in text
    assert "irregular" not in text


def test_a_quick_scan_of_videos_decodes_nothing(mixed_folder):
    found = scan(mixed_folder, only="videos", quick=True)
    assert found.bad_files() == {}
    assert "\nheaders read, nothing decoded: damage inside a file is not found\n" in found.table()


def test_scan_takes_images_and_videos_of_one_folder(mixed_folder, capfd):
    with pytest.raises(SystemExit) as end:
        main(["scan", str(mixed_folder)])
    assert end.value.code == 1
    text = capfd.readouterr().out
    assert f"3 image files in {mixed_folder}\n" in text
    assert f"3 video files in {mixed_folder}\n" in text
    assert text.count(f"\n1 file in {mixed_folder} is ignored (1 .gif)\n") == 2
    assert text.count("\n1 bad files\n") == 2
    assert "truncated or damaged: 1\n  b/cut.png\n" in text
    assert "truncated or damaged: 1\n  b/damaged.mp4\n" in text
    assert "video files" not in scan(mixed_folder, only="images").table()


def test_scan_of_a_list_of_videos_with_parts(mixed_folder, tmp_path):
    good, damaged = (f"{mixed_folder}/{name}.mp4" for name in ("a/good", "b/damaged"))
    (tmp_path / "list.txt").write_text(f"{good} 3 0 0.2\n{damaged} 4 0 0.2\n{good} 3 8 9\n{damaged} 3 1 9\n")
    found = scan(tmp_path / "list.txt")
    assert found.bad_files() == {good: "no frames between start and end", damaged: "truncated or damaged"}
    assert "3 bad files\ntruncated or damaged: 2\n" in found.table()
    assert f"\n  {damaged} (0 to 0.2 s)\n" in found.table()


def test_scan_of_extracted_frames(tmp_path):
    """They are images, and videos only by request."""
    for number in range(3):
        write_png(tmp_path / "a" / f"{number:08d}.png", GREY)
        write_png(tmp_path / "b" / f"{number:08d}.png", GREY[: 9 - number])
    assert scan(tmp_path).table().startswith("6 image files in ")
    found = scan(tmp_path, only="videos")
    assert found.bad_files() == {f"{tmp_path}/b": "frames of several sizes"}
    (tmp_path / "a" / "00000001.png").write_bytes((tmp_path / "a" / "00000001.png").read_bytes()[:-30])
    assert scan(tmp_path, only="videos").bad_files()[f"{tmp_path}/a"] == "truncated or damaged"


def test_an_interrupt_ends_the_scan_of_videos(mixed_folder, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("sce_fast.tools.scan.undecodable_reason", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scan(mixed_folder, only="videos")
