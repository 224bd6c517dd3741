"""Packets of VP9 and AV1 that hold no picture, or several, or one that is not shown."""

import pytest

from helpers.videos import copy_packets, write_video
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.pictures import is_one_picture

# options of encoders that make them hide no picture; by default they do
SHOWN = {"vp9": {"auto-alt-ref": "0"}, "av1": {"svtav1-params": "lp=1:pred-struct=1"}}


def frame(shown, existing=False, layers=False):
    """Return an OBU of AV1 with a frame header, of 3 bytes."""
    return bytes([6 << 3 | layers << 2 | 2, *[0] * layers, 3, existing << 7 | shown << 4, 0, 0])


def test_obus_of_av1():
    sequence, delimiter = bytes([1 << 3 | 2, 1, 0]), bytes([2 << 3 | 2, 0])
    assert is_one_picture("av1", memoryview(delimiter + sequence + frame(shown=True)))
    assert is_one_picture("av1", memoryview(frame(shown=True, layers=True)))
    without_size = bytes([6 << 3, 1 << 4, 0, 0])
    assert is_one_picture("av1", memoryview(sequence + without_size))
    large = bytes([5 << 3 | 2, 0x81, 0x01]) + bytes(129)  # metadata of 129 bytes
    assert is_one_picture("av1", memoryview(large + frame(shown=True)))
    for wrong in (
        frame(shown=False),
        frame(shown=True, existing=True),
        frame(shown=False) + frame(shown=True),
        sequence,
        frame(shown=True)[:-1],
        frame(shown=True) + b"\x12\xff\xff",
    ):
        assert not is_one_picture("av1", memoryview(wrong))


def test_frames_of_vp9():
    assert is_one_picture("vp9", memoryview(bytes([0b10_00_0_0_1_0, 1, 2])))
    for first in (0b10_00_1_000, 0b10_00_0_0_0_0, 0b10_11_0_0_1_0, 0b01_00_0_0_1_0):
        assert not is_one_picture("vp9", memoryview(bytes([first, 1, 2])))
    superframe = bytes([0x82, 1, 2, 0b110_00_001, 1, 2, 0b110_00_001])
    assert not is_one_picture("vp9", memoryview(superframe))
    assert is_one_picture("vp9", memoryview(superframe[:3] + superframe[4:])), "such a byte may end any frame"
    assert is_one_picture("h264", memoryview(b"\x00"))


@pytest.mark.parametrize("codec", SHOWN)
def test_files_of_encoders(tmp_path, codec):
    for name, options in (("hidden", {}), ("shown", SHOWN[codec])):
        write_video(tmp_path / name, codec, frames=40, size=(64, 80), options={"g": "100", **options})
    index = index_videos(tmp_path, cache=tmp_path / "cache")
    assert index.plain.all()
    assert [name.split(".")[0] for name in index.listing.names] == ["hidden", "shown"]
    assert index.one_picture.tolist() == [False, True]
    assert index.timelines.frames.tolist() == [40, 40]


def test_interlaced_files(tmp_path):
    """A packet may hold a single field."""
    source = write_video(tmp_path / "source", "h264", frames=20, options={"x264-params": "tff=1:scenecut=0", "bf": "0"})
    (tmp_path / "data").mkdir()
    copy_packets(source, tmp_path / "data" / "interlaced.mkv", lambda number, packet: packet)
    write_video(tmp_path / "data" / "progressive", "h264", frames=20)
    index = index_videos(tmp_path / "data", cache=tmp_path / "cache")
    assert index.listing.names == ["interlaced.mkv", "progressive.mp4"]
    assert index.one_picture.tolist() == [False, True]
