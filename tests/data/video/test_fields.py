"""Interlaced H.264 whose fields are packets of their own: a frame counts once, and is decoded by its number."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest

from helpers.fields import TICKS, write_fields
from helpers.videos import number_of, write_video
from sce_fast.data.video.decode import ClipRequest, decode_clips
from sce_fast.data.video.fields import Field, FieldReader, field_pairs
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.probe import VideoFacts, probe, undecodable_reason

FRAMES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fields")


@pytest.mark.parametrize(("ending", "packets"), [("ts", 1), ("ts", 2), ("mp4", 1), ("mp4", 2), ("mkv", 1), ("mkv", 2)])
def test_frames_are_counted_once_and_found(folder, ending, packets):
    """FFmpeg splits the packets of a transport stream into fields; mp4 and Matroska keep what was written."""
    path = write_fields(folder / f"{packets}.{ending}", packets_of_frame=packets)
    facts = probe(os.fsencode(path))
    assert isinstance(facts, VideoFacts), facts
    assert len(facts.times) == FRAMES
    assert facts.timed
    assert set(np.diff(facts.times).tolist()) == {TICKS if ending != "mkv" else 40}
    assert int(facts.end - facts.times[0]) * facts.tick == Fraction(FRAMES, 25)
    assert {0, 6, 12, 18} <= set(facts.key_frames.tolist())
    assert facts.plain == (ending != "ts" and packets == 1)  # DALI counts packets
    assert undecodable_reason(os.fsencode(path)) is None

    index = index_videos(path.parent)
    sample = index.listing.names.index(path.name)
    for plan in ([7], [0, 19], [3, 4, 11], range(FRAMES)):
        (clip,) = decode_clips(index, sample, [ClipRequest(np.array(plan))])
        assert [number_of(frame) for frame in clip] == list(plan)


@pytest.mark.parametrize(("frame", "field"), [(0, 1), (4, 0), (4, 1), (19, 1)])
def test_a_field_without_the_other_is_no_frame(tmp_path, frame, field):
    path = write_fields(tmp_path / "lone.ts", keep=lambda number, i: (number, i) != (frame, field))
    facts = probe(os.fsencode(path))
    assert isinstance(facts, VideoFacts), facts
    expected = [number for number in range(FRAMES) if number != frame]
    if frame == 0:  # the next frame in the file refers to it
        expected.remove(1)
    assert ((facts.times - 2 * TICKS) // TICKS).tolist() == expected
    assert undecodable_reason(os.fsencode(path)) is None


def test_pairs():
    top, bottom, other = Field(1, False), Field(1, True), Field(2, True)
    assert field_pairs([]) == []
    assert field_pairs([None, None]) == [(0, 0), (1, 1)]
    assert field_pairs([top, bottom, top, bottom]) == [(0, 1), (2, 3)]
    assert field_pairs([bottom, top, None]) == [(0, 1), (2, 2)]
    assert field_pairs([top, top, bottom, top]) == [(1, 2)]
    assert field_pairs([top, other, None, bottom]) == [(2, 2)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"profile": "baseline"},
        {"x264-params": "interlaced=1:tff=1"},
        {"x264-params": "fake-interlaced=1"},
        {"x264-params": "cqm=jvt:8x8dct=1:interlaced=1"},
    ],
    ids=["high", "baseline", "adaptive fields", "fake", "scaling lists"],
)
@pytest.mark.parametrize("ending", ["ts", "mp4"])
def test_frames_of_other_streams_are_no_fields(tmp_path, options, ending):
    path = write_video(tmp_path / "video", frames=10, ending=ending, options={"bf": "0", **options})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        reader = FieldReader(stream.codec_context.extradata)
        fields = [reader.field(bytes(packet)) for packet in container.demux(stream) if packet.size]
    assert fields == [None] * 10
    assert reader.is_progressive == ("interlaced" not in str(options))


@pytest.mark.parametrize("extradata", [b"", b"\x01", b"\x01" * 9, b"\0\0\x01\x67", b"\0\0\x01\x67\xff" * 3])
def test_damaged_headers_are_passed_over(extradata):
    reader = FieldReader(extradata)
    assert not reader.is_progressive
    for packet in (b"", b"\0\0\x01\x65", b"\0\0\x01\x65" + bytes(50), b"\0\0\x01", bytes(range(64)), b"\xff" * 9):
        assert reader.field(packet) is None
