"""Probing: what demuxing alone says of a file must agree with what a decoder returns."""

import os
import shutil

import av
import numpy as np
import pytest

from helpers.videos import (
    CODECS,
    copy_packets,
    cut_off,
    number_of,
    set_edit_start,
    set_track_matrix,
    with_content,
    write_streams,
    write_video,
)
from sce_fast.data.faults import DAMAGED
from sce_fast.data.video import probe as probe_module
from sce_fast.data.video.probe import VideoFacts, demuxed, opened, probe, undecodable_reason


def probed(path) -> VideoFacts:
    facts = probe(os.fsencode(path))
    assert isinstance(facts, VideoFacts), facts
    return facts


def decoded(path, stream=0):
    """Return the frames of a video stream as a plain loop with PyAV decodes them."""
    with av.open(str(path)) as container:
        return list(container.decode(container.streams[stream]))


def numbers(frames) -> list[int]:
    return [number_of(frame.to_ndarray(format="rgb24")) for frame in frames]


@pytest.fixture(scope="module")
def h264(tmp_path_factory):
    """Return a video of 30 frames with B-frames and a key frame every 12 frames."""
    return write_video(tmp_path_factory.mktemp("h264") / "video", frames=30)


@pytest.mark.parametrize("codec", CODECS)
def test_frames_times_and_key_frames_are_those_of_the_decoder(tmp_path, codec):
    path = write_video(tmp_path / "video", codec, frames=30)
    facts, frames = probed(path), decoded(path)
    assert numbers(frames) == list(range(30))
    assert len(facts.times) == 30
    assert facts.size == (96, 128)
    assert facts.codec == codec
    assert facts.pixel_format == frames[0].format.name
    assert float((facts.end - facts.times[0]) * facts.tick) == pytest.approx(30 / 25)
    assert set(np.diff(facts.times)) == {1 / 25 / facts.tick}
    assert facts.timed == facts.plain == (codec != "mpeg4")  # MPEG-4 in AVI has only times of decoding
    if facts.timed:
        assert facts.times.tolist() == [frame.pts for frame in frames]
        assert facts.key_frames.tolist() == [i for i, frame in enumerate(frames) if frame.key_frame]
    assert undecodable_reason(os.fsencode(path)) is None


@pytest.mark.parametrize(("codec", "ending"), [("h264", "mp4"), ("h264", "mkv"), ("h264", "ts"), ("vp9", "webm")])
def test_variable_rates_keep_every_time(tmp_path, codec, ending):
    times = np.cumsum(np.random.default_rng(0).integers(20, 90, 20)).tolist()
    path = write_video(tmp_path / "video", codec, frames=20, times=times, ending=ending)
    facts = probed(path)
    assert facts.times.tolist() == [frame.pts for frame in decoded(path)]
    seconds = (facts.times - facts.times[0]) * float(facts.tick)
    np.testing.assert_allclose(seconds, (np.array(times) - times[0]) / 1000, atol=1e-4)
    assert facts.plain


@pytest.mark.parametrize("start", [0, 10, 15])
def test_an_edit_list_leaves_out_the_first_frames(tmp_path, h264, start):
    """At 0, the edit list only shifts the times by the delay of the B-frames."""
    path = shutil.copy(h264, tmp_path / "edited.mp4")
    assert b"elst" in path.read_bytes()
    set_edit_start(path, start)
    facts, frames = probed(path), decoded(path)
    assert numbers(frames) == list(range(start, 30))
    assert facts.times.tolist() == [frame.pts for frame in frames]
    assert facts.times[0] == 0
    assert facts.key_frames.tolist() == [number - start for number in (0, 12, 24) if number >= start]
    assert facts.plain == (start == 0)


def test_negative_times(tmp_path, h264):
    def earlier(number, packet):
        packet.pts, packet.dts = packet.pts - 5120, packet.dts - 5120
        return packet

    path = copy_packets(h264, tmp_path / "negative.ts", earlier, avoid_negative_ts="disabled")
    facts = probed(path)
    assert facts.times[0] < 0
    assert facts.times.tolist() == [frame.pts for frame in decoded(path)]
    assert not facts.plain  # DALI leaves out the frames before time 0


TURNS = {(0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270, (1, 0, 0, 1): 0}


@pytest.mark.parametrize("matrix", TURNS)
def test_rotation_in_the_track_header(tmp_path, h264, matrix):
    path = shutil.copy(h264, tmp_path / "turned.mp4")
    set_track_matrix(path, matrix)
    facts = probed(path)
    assert facts.rotation == TURNS[matrix] == -decoded(path)[0].rotation % 360  # PyAV counts counter-clockwise
    assert facts.size == ((96, 128) if matrix[0] else (128, 96))
    assert facts.plain == (facts.rotation == 0)


@pytest.mark.parametrize(("matrix", "rotation"), [((-1, 0, 0, 1), 0), ((1, 0, 0, -1), 180), ((0, 1, 1, 0), 270)])
def test_mirrored_pictures_are_turned_upright(tmp_path, h264, matrix, rotation):
    """The y axis points down after the turn, as it does after the matrix; the x axis stays mirrored."""
    path = shutil.copy(h264, tmp_path / "mirrored.mp4")
    set_track_matrix(path, matrix)
    assert probed(path).rotation == rotation


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_in_every_container(tmp_path, ending, rotation):
    codec = "vp9" if ending == "webm" else "h264"
    path = write_video(tmp_path / "turned", codec, frames=3, ending=ending, rotation=rotation)
    assert probed(path).rotation == -decoded(path)[0].rotation % 360 == 360 - rotation


@pytest.mark.parametrize(
    ("streams", "chosen"),
    [
        (["audio", "video"], 1),
        (["small", "video", "audio"], 1),
        (["video", "small"], 0),
        (["cover", "video"], None),
        (["video", "cover"], 0),
    ],
)
def test_one_of_several_streams(tmp_path, streams, chosen):
    path = write_streams(tmp_path / "video.mp4", streams)
    facts = probed(path)
    assert facts.size == (96, 128)
    assert chosen is None or facts.stream == chosen
    assert numbers(decoded(path, facts.stream)) == list(range(20))
    assert len(facts.times) == 20
    assert facts.plain == (streams == ["audio", "video"])
    assert undecodable_reason(os.fsencode(path)) is None


def test_files_without_video(tmp_path):
    assert probe(os.fsencode(write_streams(tmp_path / "sound.mp4", ["audio"]))) == "no video stream"
    assert probe(os.fsencode(write_streams(tmp_path / "song.mp4", ["audio", "cover"]))) == "no video stream"


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_files_without_frames(tmp_path, ending):
    path = tmp_path / f"none.{ending}"
    with av.open(str(path), "w", options={"movflags": "empty_moov"} if ending == "mp4" else {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        container.start_encoding()
    assert probe(os.fsencode(path)) == "no frames"


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuv422p10le", "yuv444p"])
def test_pixel_formats(tmp_path, pixels):
    path = write_video(tmp_path / "video", frames=5, pix_fmt=pixels)
    assert probed(path).pixel_format == pixels
    assert undecodable_reason(os.fsencode(path)) is None


def test_declared_colours(tmp_path, h264):
    path = write_video(tmp_path / "video", frames=3, colorspace=1, color_range=1)
    assert (probed(path).matrix, probed(path).range) == (1, 1)
    assert (probed(h264).matrix, probed(h264).range) == (2, 0)


def test_hidden_frames_of_vp8_are_no_frames(tmp_path):
    """The encoder hides frames that others refer to; here the sixth is hidden by its bit."""
    path = write_video(tmp_path / "video", "vp8", frames=20)

    def hide(number, packet):
        content = bytearray(packet)
        content[0] &= 0xEF if number == 5 else 0xFF
        return with_content(packet, bytes(content))

    hidden = copy_packets(path, tmp_path / "hidden.webm", hide)
    facts, frames = probed(hidden), decoded(hidden)
    assert numbers(frames) == [number for number in range(20) if number != 5]
    assert facts.times.tolist() == [frame.pts for frame in frames]
    assert not facts.plain


@pytest.mark.parametrize(("codec", "ending"), [("h264", "ts"), ("h264", "mkv"), ("hevc", "ts"), ("hevc", "mp4")])
def test_frames_before_the_first_key_frame_are_no_frames(tmp_path, codec, ending):
    """With open groups of pictures, frames that lack their references also follow it in the file."""
    options = {"x264-params": "open-gop=1:scenecut=0"}
    if codec == "hevc":
        options = {"x265-params": "bframes=3:keyint=12:min-keyint=12:scenecut=0:open-gop=1:log-level=none"}
    whole = write_video(tmp_path / "whole", codec, frames=40, options=options, ending="ts" if ending == "ts" else None)
    part = copy_packets(whole, tmp_path / f"part.{ending}", lambda number, packet: packet if number >= 5 else None)
    facts, frames = probed(part), decoded(part)
    assert facts.times.tolist() == [frame.pts for frame in frames]
    assert numbers(frames) == list(range(numbers(frames)[0], 40))
    assert facts.key_frames[0] == 0
    assert not facts.plain
    assert undecodable_reason(os.fsencode(part)) is None


@pytest.mark.parametrize("missing", ["some", "all"])
def test_frames_without_times_of_their_own(monkeypatch, h264, missing):
    """The times of decoding stand in, or else the nominal rate."""
    packets = probe_module._packets

    def without_times(container, stream):
        for number, packet in enumerate(packets(container, stream)):
            if missing == "all":
                yield packet._replace(time=None, decoding_time=None)
            else:
                yield packet._replace(time=None if number % 3 else packet.time)

    monkeypatch.setattr(probe_module, "_packets", without_times)
    facts = probed(h264)
    assert len(facts.times) == 30
    assert float((facts.end - facts.times[0]) * facts.tick) == pytest.approx(30 / 25)
    assert not facts.timed
    assert not facts.plain


def test_two_frames_at_one_time_cannot_be_told_apart(monkeypatch, h264):
    packets = probe_module._packets
    monkeypatch.setattr(
        probe_module,
        "_packets",
        lambda *arguments: (p._replace(time=512 if p.time == 1024 else p.time) for p in packets(*arguments)),
    )
    assert not probed(h264).timed


TRUNCATED = {
    "mp4 without its header": ("h264", {}, 0.5),
    "mp4, header first": ("h264", {"movflags": "faststart"}, 0.5),
    "mp4, header first, only the last frame": ("h264", {"movflags": "faststart"}, 0.995),
    "mp4 in fragments": ("h264", {"movflags": "frag_keyframe+empty_moov"}, 0.6),
    "webm": ("vp9", {}, 0.5),
    "webm, only the last bytes": ("vp9", {}, 0.995),
    "avi": ("mjpeg", {}, 0.5),
}


@pytest.mark.parametrize("kind", TRUNCATED)
def test_truncated_files(tmp_path, kind):
    codec, muxer, share = TRUNCATED[kind]
    path = write_video(tmp_path / "video", codec, frames=30, muxer=muxer)
    assert len(probed(path).times) == 30
    cut_off(path, share)
    assert probe(os.fsencode(path)) == DAMAGED


def test_a_webm_of_unknown_length_is_whole(tmp_path):
    """Browsers record such files."""
    path = write_video(tmp_path / "video", "vp9", frames=10, muxer={"live": "1"})
    assert path.read_bytes().count(b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff") == 1
    assert len(probed(path).times) == 10


def other_files(folder):
    """Write files that are no videos under the name of one; return name → reason."""
    (folder / "page.mp4").write_text("<html>404</html>" * 50)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "short.mp4").write_bytes(b"\0\0")
    (folder / "header.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(12))
    (folder / "matroska.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(100))
    with av.open(str(folder / "picture.mp4"), "w", format="image2") as container:
        stream = container.add_stream("png")
        stream.height, stream.width, stream.pix_fmt = 16, 16, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), dtype=np.uint8))))
    video = folder / "secret.mp4"
    write_video(folder / "secret", frames=3)
    (folder / "playlist.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{video}\n#EXT-X-ENDLIST\n"
    )
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
    damaged = {"header.mp4", "matroska.mkv"}
    names = {file.name for file in folder.iterdir()} - {"secret.mp4"}
    return {name: DAMAGED if name in damaged else "not a video" for name in names}


def test_other_files_under_the_name_of_a_video(tmp_path, capfd):
    """Playlists must not open the files and addresses that they name."""
    reasons = other_files(tmp_path)
    assert {name: probe(os.fsencode(tmp_path / name)) for name in reasons} == reasons
    assert capfd.readouterr() == ("", "")  # FFmpeg's messages would flood the terminal


def test_files_that_vanish_or_may_not_be_read(tmp_path, h264, monkeypatch):
    assert probe(os.fsencode(tmp_path / "gone.mp4")) == "missing"

    def refuse(path, *rest, **more):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)  # simulated, because root may read everything
    assert probe(os.fsencode(h264)) == "unreadable"
    assert probe(os.fsencode(h264.with_name("gone"))) == "missing"


@pytest.mark.parametrize("name", [b"data:a.mp4", b"caf\xe9 \xff.mp4", b"50%d.mp4", b"a,b[c]:d\\.mp4"])
def test_any_file_name(tmp_path, h264, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(h264, tmp_path / os.fsdecode(name))
    assert isinstance(probe(name), VideoFacts)


def test_metadata_that_is_not_text(tmp_path, h264):
    path = tmp_path / "video.mp4"
    path.write_bytes(h264.read_bytes().replace(b"VideoHandler", b"Vid\xff\xfeHandler"))
    with pytest.raises(UnicodeDecodeError), av.open(str(path)):
        pass
    assert len(probed(path).times) == 30


def test_packets_end_where_pyav_lacks_a_stream():
    class Container:
        def demux(self, stream):
            yield from (stream, "last")
            raise IndexError("list index out of range")

    assert list(demuxed(Container(), "first")) == ["first", "last"]


def test_no_times_are_made_up(h264):
    """PyAV would let FFmpeg generate times that a container lacks, which look like its own."""
    with opened(os.fsencode(h264)) as container:
        assert not container.flags & 1


def test_damage_inside_a_file_is_found_by_decoding(tmp_path, h264, capfd):
    path = tmp_path / "damaged.mp4"
    content = bytearray(h264.read_bytes())
    with av.open(str(h264)) as container:
        packet = next(packet for number, packet in enumerate(container.demux(video=0)) if number == 12)
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(content)
    assert len(probed(path).times) == 30
    assert undecodable_reason(os.fsencode(path)) == DAMAGED
    assert undecodable_reason(os.fsencode(h264)) is None
    assert capfd.readouterr() == ("", "")


def test_frames_of_several_sizes(tmp_path):
    large = write_video(tmp_path / "large", "vp8", frames=10)
    small = write_video(tmp_path / "small", "vp8", frames=10, size=(48, 64))
    with av.open(str(small)) as container:
        contents = [bytes(packet) for packet in container.demux(video=0) if packet.size]

    def replaced(number, packet):
        return with_content(packet, bytes(packet) if number < 5 else contents[number - 5])

    mixed = copy_packets(large, tmp_path / "mixed.webm", replaced)
    assert len(probed(mixed).times) == 10
    assert undecodable_reason(os.fsencode(mixed)) == "frames of several sizes"
