"""Decoding: exactly the planned frames, the samples that a plain loop decodes, and errors with a reason."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helpers.videos import (
    CODECS,
    copy_packets,
    cut_off,
    number_of,
    numbered_frame,
    set_edit_start,
    write_late_streams,
    write_streams,
    write_video,
)
from sce_fast.data.video import stream as stream_module
from sce_fast.data.video.decode import ClipRequest, VideoError, decode_clips
from sce_fast.data.video.files import Ragged
from sce_fast.data.video.index import VideoIndex, index_videos
from sce_fast.data.video.probe import undecodable_reason
from sce_fast.data.video.stream import planned_frames, split_into_runs

FRAMES = 60
TIMES = np.cumsum(np.random.default_rng(0).integers(15, 90, FRAMES)).tolist()
TIMED_CONTAINERS = ("mp4", "webm")


def indexed(path, *others, part="") -> VideoIndex:
    """Return the index of some files; `part` is start and end in seconds of the first one."""
    listing = path.with_name(f"{path.name}.txt")
    listing.write_text("".join(f"{os.fspath(p)}{part if i == 0 else ''}\n" for i, p in enumerate([path, *others])))
    return index_videos(listing, cache=path.parent / "cache")


def numbers(clip) -> list[int]:
    return [number_of(frame) for frame in clip]


def one_clip(index, frames, box=None):
    (clip,) = decode_clips(index, 0, [ClipRequest(np.array(frames), box)])
    return clip


def whole_file(path):
    """Return the samples of every frame of a file, decoded by a plain loop; their shape depends on the pixel format."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def assert_each_alone_is_as_in(index, frames, plans):
    """Compare the samples of planned frames with those of a plain loop."""
    for plan in plans:
        found = list(planned_frames(index, 0, np.sort(plan)))
        assert sorted(number for number, _ in found) == sorted(plan)
        for number, frame in found:
            assert (frame.to_ndarray() == frames[number]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def videos(folder):
    """Return codec, with * for a variable rate → index of a video of 60 frames."""
    found = {codec: indexed(write_video(folder / codec, codec, frames=FRAMES)) for codec in CODECS}
    for codec, (_, ending, _, _) in CODECS.items():
        if ending in TIMED_CONTAINERS:
            path = write_video(folder / f"{codec}_variable", codec, frames=FRAMES, times=TIMES)
            found[f"{codec}*"] = indexed(path)
    return found


@pytest.mark.parametrize("kind", [*CODECS, "h264*", "hevc*", "vp8*", "vp9*", "av1*"])
def test_exactly_the_planned_frames(videos, kind):
    index, rng = videos[kind], np.random.default_rng(1)
    assert index.timelines.frames[0] == FRAMES
    assert bool(index.timelines.step[0]) != kind.endswith("*")
    plans = [
        [[0]],
        [[FRAMES - 1]],
        [range(0, FRAMES, 7), range(3, 33, 3)],  # overlapping clips of different strides
        [range(FRAMES - 8, FRAMES), range(FRAMES - 12, FRAMES - 4)],
        [[5, 5, 6, 6, 6, 7], [6]],  # as short videos repeat them
        [[50, 10, 33, 10, 12]],  # in no order
        *([np.sort(rng.integers(0, FRAMES, 6)) for _ in range(2)] for _ in range(4)),
    ]
    for plan in plans:
        clips = decode_clips(index, 0, [ClipRequest(np.array(frames)) for frames in plan])
        assert [clip.shape for clip in clips] == [(len(frames), 96, 128, 3) for frames in plan]
        assert [numbers(clip) for clip in clips] == [list(frames) for frames in plan]


@pytest.mark.parametrize("kind", ["h264", "hevc", "vp9", "mpeg4", "av1*"])
def test_each_frame_alone_has_the_bits_that_decoding_all_gives(videos, kind):
    """Seeks and frames that the decoder leaves out change nothing."""
    frames = whole_file(os.fsdecode(videos[kind].path(0)))
    assert len(frames) == FRAMES
    assert_each_alone_is_as_in(videos[kind], frames, [[number] for number in range(FRAMES)])


X265 = "scenecut=0:b-adapt=0:log-level=none:keyint=24:min-keyint=24"
ENCODERS = {
    "pyramid of B-frames": ("h264", "mp4", {"x264-params": "bframes=5:b-pyramid=normal:b-adapt=0:scenecut=0"}),
    "open groups": ("h264", "mkv", {"x264-params": "bframes=3:open-gop=1:b-adapt=0:scenecut=0"}),
    "open groups in a transport stream": ("h264", "ts", {"x264-params": "bframes=3:open-gop=1:scenecut=0"}),
    "flash": ("h264", "flv", {"x264-params": "bframes=3:b-adapt=0:scenecut=0"}),
    "interlaced": ("h264", "mp4", {"x264-params": "bframes=3:interlaced=1:tff=1"}),
    "periodic refresh": ("h264", "mkv", {"x264-params": "bframes=0:intra-refresh=1:scenecut=0"}),
    "HEVC with open groups": ("hevc", "mkv", {"x265-params": f"bframes=4:b-pyramid=1:open-gop=1:{X265}"}),
    "HEVC in a transport stream": ("hevc", "ts", {"x265-params": f"bframes=4:b-pyramid=1:open-gop=1:{X265}"}),
    "HEVC with temporal layers": ("hevc", "mp4", {"x265-params": f"bframes=3:temporal-layers=3:{X265}"}),
    "MPEG-4 in mp4": ("mpeg4", "mp4", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
def test_every_frame_with_other_encoders(tmp_path, kind):
    codec, ending, options = ENCODERS[kind]
    path = write_video(tmp_path / "video", codec, frames=80, ending=ending, options={**options, "g": "24"})
    index = indexed(path)
    frames, rng = whole_file(path), np.random.default_rng(0)
    assert len(frames) == index.timelines.frames[0] == 80
    assert numbers(one_clip(index, range(80))) == list(range(80))
    assert_each_alone_is_as_in(index, frames, [[number] for number in range(80)])
    assert_each_alone_is_as_in(index, frames, [rng.choice(80, 6, replace=False) for _ in range(20)])


def test_a_periodic_refresh_is_no_place_to_start(tmp_path):
    """The decoder calls the frames after a seek whole too early."""
    options = {"x264-params": "bframes=0:intra-refresh=1:scenecut=0", "g": "24"}
    path = write_video(tmp_path / "video", frames=60, ending="mkv", options=options)
    index = indexed(path)
    assert index.key_frames[0].tolist() == [0, 24, 48]
    assert_each_alone_is_as_in(index, whole_file(path), [[26], [40], [47], [55]])


@pytest.fixture
def decoded_frames(monkeypatch):
    """Return a list that gets the time of each frame that decoders return."""
    times, decode = [], stream_module._decode

    def counting(*arguments):
        for frame in decode(*arguments):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(stream_module, "_decode", counting)
    return times


def test_gaps_are_skipped_and_unneeded_frames_are_not_decoded(videos, decoded_frames):
    """Of 60 frames with a key frame every 12, two planned ones in the first and the last group."""
    index = videos["vp9"]
    assert numbers(one_clip(index, [3, 50])) == [3, 50]
    assert len(decoded_frames) == 4 + 3
    decoded_frames.clear()
    index = videos["h264"]
    assert numbers(one_clip(index, [3, 50])) == [3, 50]
    assert len(decoded_frames) < 4 + 3
    decoded_frames.clear()
    one_clip(index, range(60))
    assert len(decoded_frames) == 60


def test_which_streams_may_leave_out_frames(tmp_path, videos):
    def may_skip(path):
        with av.open(os.fsdecode(path)) as container:
            return stream_module._may_skip(container.streams.video[0].codec_context)

    layers = {"x265-params": "temporal-layers=3:log-level=none:bframes=3"}
    fields = {"x264-params": "interlaced=1:tff=1"}
    assert may_skip(videos["h264"].path(0))
    assert may_skip(videos["hevc"].path(0))
    assert not may_skip(videos["vp9"].path(0))
    assert not may_skip(write_video(tmp_path / "layers", "hevc", frames=10, options=layers))
    assert not may_skip(write_video(tmp_path / "stream", "hevc", frames=10, ending="ts"))
    assert not may_skip(write_video(tmp_path / "fields", frames=10, options=fields))


@pytest.mark.parametrize(
    ("planned", "keys", "runs"),
    [
        ([3, 14, 40], [0, 12, 24, 36], [(0, [3]), (12, [14]), (36, [40])]),
        ([3, 11, 13], [0, 12, 24, 36], [(0, [3, 11, 13])]),  # 12 is decoded soon
        ([0, 59], [0], [(0, [0, 59])]),
        ([14], [0, 12], [(12, [14])]),
        ([12], [0, 12], [(12, [12])]),
        ([3, 9], [7], [(0, [3, 9])]),  # an edit list hides the first key frame
        ([5], [], [(0, [5])]),
    ],
)
def test_runs_start_at_key_frames(planned, keys, runs):
    found = split_into_runs(np.array(planned), np.array(keys, dtype=np.int64))
    assert [(key, run.tolist()) for key, run in found] == runs


@pytest.mark.parametrize("wrong", [[0, 20, 40], [0], [59], []])
def test_wrong_key_frames_cost_time_only(videos, wrong):
    """Containers flag key frames that are none."""
    other = replace(videos["h264"], key_frames=Ragged.of([np.array(wrong, dtype=np.int64)]))
    assert numbers(one_clip(other, [2, 23, 30, 45, 58])) == [2, 23, 30, 45, 58]


@pytest.mark.parametrize("kind", ["h264", "mjpeg"])
def test_boxes_are_parts_of_whole_frames(videos, kind):
    index = videos[kind]
    whole = one_clip(index, range(10, 30))
    boxes = np.array([[0, 0, 96, 128], [1, 3, 50, 99], [95, 127, 96, 128], [40, 64, 42, 128], [7, 0, 96, 1]], np.int32)
    requests = [ClipRequest(np.arange(10 + i, 30 - i), box) for i, box in enumerate(boxes)]  # of the same frames
    for i, (clip, (top, left, bottom, right)) in enumerate(zip(decode_clips(index, 0, requests), boxes, strict=True)):
        assert (clip == whole[i : 20 - i, top:bottom, left:right]).all()
        assert (one_clip(index, requests[i].frames, boxes[i]) == clip).all()


@pytest.mark.parametrize("clockwise", [90, 180, 270])
def test_rotated_videos_are_upright(folder, videos, clockwise):
    path = write_video(folder / f"turned{clockwise}", frames=20, rotation=-clockwise % 360)
    index = indexed(path)
    assert index.rotations[0] == clockwise
    encoded = one_clip(videos["h264"], range(20))
    upright = np.rot90(encoded, -clockwise // 90, axes=(1, 2))
    assert np.abs(one_clip(index, range(20)).astype(int) - upright).mean() < 4  # encoded anew
    whole = one_clip(index, [3, 17])
    assert numbers(np.rot90(whole, clockwise // 90, axes=(1, 2))) == [3, 17]
    for top, left, bottom, right in [(0, 0, 50, 40), (31, 7, 90, 96), (10, 20, 11, 90)]:
        part = one_clip(index, [3, 17], np.array([top, left, bottom, right]))
        assert (part == whole[:, top:bottom, left:right]).all()


@pytest.mark.parametrize("start", [5, 15])
def test_an_edit_list_hides_the_first_frames(folder, start):
    """Some of them are decoded all the same, as others refer to them."""
    path = write_video(folder / f"edited{start}", frames=40)
    set_edit_start(path, start)
    index = indexed(path)
    assert index.timelines.frames[0] == 40 - start
    for plan in ([0], [39 - start], [1, 8, 20], range(40 - start)):
        assert numbers(one_clip(index, plan)) == [start + number for number in plan]


@pytest.mark.parametrize("kind", ["h264", "vp9*", "mpeg4"])
def test_parts_count_from_their_own_first_frame(videos, kind):
    path = os.fsdecode(videos[kind].path(0))
    index = indexed(videos[kind].listing.source.parent / os.path.basename(path), part="\t0.61\t1.75")
    offset, frames = (int(column[0]) for column in (index.timelines.offset, index.timelines.frames))
    assert 0 < offset < offset + frames < FRAMES
    for plan in ([0], [frames - 1], [2, 9, frames - 3], range(frames)):
        assert numbers(one_clip(index, plan)) == [offset + number for number in plan]


def test_one_of_several_streams(tmp_path):
    index = indexed(write_streams(tmp_path / "video.mp4", ["small", "audio", "video"]))
    assert index.streams[0] == 2
    assert numbers(one_clip(index, [0, 7, 19])) == [0, 7, 19]


def test_a_file_that_gains_streams_later(tmp_path):
    """PyAV fails at its end, depending on what happens to stand in memory: it knows only the first streams."""
    index = indexed(write_late_streams(tmp_path / "video.ts"))
    assert index.timelines.frames[0] == 60
    assert undecodable_reason(index.path(0)) is None
    for plan in ([0, 30, 59], range(60)):
        assert numbers(one_clip(index, plan)) == list(plan)


def test_negative_times(folder, videos):
    def earlier(number, packet):
        packet.pts, packet.dts = packet.pts - 5120, packet.dts - 5120
        return packet

    source = os.fsdecode(videos["h264"].path(0))
    index = indexed(copy_packets(source, folder / "negative.ts", earlier, avoid_negative_ts="disabled"))
    assert index.timelines.first[0] < 0
    assert numbers(one_clip(index, [0, 5, 30, 59])) == [0, 5, 30, 59]


def test_threads_share_nothing(videos):
    indexes = [videos[kind] for kind in ("h264", "vp9", "mpeg4", "hevc*")] * 3
    plan = [1, 20, 41, 58]
    with ThreadPoolExecutor(4) as pool:
        for clip in pool.map(lambda index: one_clip(index, plan), indexes):
            assert numbers(clip) == plan


# Damage


def reason(index, frames=(0, 30, 59)) -> str:
    with pytest.raises(VideoError) as caught:
        one_clip(index, frames)
    assert str(caught.value).startswith(os.fsdecode(index.path(0)))
    assert str(caught.value).endswith(f": {caught.value.reason}")
    return caught.value.reason


def outcome(index, frames) -> list[int] | str:
    """Return the numbers that the decoded frames show, or the reason why they cannot be decoded."""
    try:
        return numbers(one_clip(index, frames))
    except VideoError as error:
        return error.reason


@pytest.fixture
def copied(tmp_path, videos):
    """Return a function that copies a video and returns the copy and its index."""

    def copy(kind):
        path = shutil.copy(os.fsdecode(videos[kind].path(0)), tmp_path)
        path = tmp_path / os.path.basename(path)
        return path, indexed(path)

    return copy


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("share", [0.02, 0.6, 0.85])
def test_files_cut_off_after_indexing(copied, kind, share):
    path, index = copied(kind)
    cut_off(path, share)
    assert reason(index) == "truncated or damaged"


@pytest.mark.parametrize("kind", CODECS)
def test_files_that_lack_their_last_bytes(copied, kind):
    """In some containers those are no frames."""
    path, index = copied(kind)
    cut_off(path, 0.99)
    assert outcome(index, [0, 30, 59]) in ([0, 30, 59], "truncated or damaged")


@pytest.mark.parametrize("kind", CODECS)
def test_bytes_lost_in_the_middle(copied, kind, capfd):
    """The frames before the damage are still there."""
    path, index = copied(kind)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first, last = (packets[i].pos for i in (26, 34))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    assert reason(index, range(60)) == "truncated or damaged"
    assert numbers(one_clip(index, [0, 10])) == [0, 10]
    for plan in ([0, 30], [55, 59]):
        assert outcome(index, plan) in (plan, "truncated or damaged")
    assert capfd.readouterr() == ("", "")  # FFmpeg's messages would flood the terminal


def test_groups_after_the_damage_are_still_decoded(copied):
    path, index = copied("h264")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first, last = (packets[i].pos for i in (1, 5))
    content[first:last] = bytes(last - first)
    path.write_bytes(content)
    assert reason(index, [5]) == "truncated or damaged"
    assert numbers(one_clip(index, [40, 59])) == [40, 59]


def test_other_things_in_place_of_a_file(copied):
    path, index = copied("h264")
    content = path.read_bytes()
    path.unlink()
    assert reason(index) == "missing"
    os.mkfifo(path)  # opening it would never return
    assert reason(index) == "not a file"
    path.unlink()
    path.touch()
    assert reason(index) == "empty"
    path.write_bytes(content[:100] + np.random.default_rng(0).bytes(len(content) - 100))
    assert reason(index) == "truncated or damaged"
    path.write_text("<html>404</html>" * 50)
    assert reason(index) == "not a video"
    write_streams(path, ["audio"])
    assert reason(index) == "no video stream"
    write_video(path.with_suffix(""), frames=60, size=(64, 80))
    assert reason(index) == "changed size"
    path.write_bytes(content)
    assert numbers(one_clip(index, [7])) == [7]


def test_fewer_frames_than_the_index_has(copied):
    path, index = copied("vp9")
    write_video(path.with_suffix(""), "vp9", frames=40)
    assert reason(index) == "truncated or damaged"
    assert numbers(one_clip(index, [39])) == [39]


def test_requests_outside_the_video(videos):
    index = videos["h264"]
    for frames in ([-1], [60]):
        with pytest.raises(ValueError, match=rf"frame {frames[0]}: expected 0 to 59"):
            one_clip(index, frames)
    for box in ([0, 0, 97, 10], [-1, 0, 5, 5], [5, 5, 5, 9]):
        with pytest.raises(ValueError, match="expected top, left, bottom, right within 96 × 128 pixels"):
            one_clip(index, [0], np.array(box))


@pytest.mark.parametrize("name", [b"data:a.mp4", b"caf\xe9 \xff.mp4", b"50%d.mp4"])
def test_any_file_name(tmp_path, videos, name):
    shutil.copy(videos["h264"].path(0), os.fsencode(tmp_path) + b"/" + name)
    index = index_videos(tmp_path, cache=tmp_path.with_name("cache"))
    assert numbers(one_clip(index, [11])) == [11]


# Extracted frames


@pytest.fixture
def extracted(tmp_path):
    """Return the index of a folder of 12 extracted frames, from number 1 on."""
    folder = tmp_path / "root" / "video"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(numbered_frame(number, 96, 128)).save(folder / f"{number + 1:08d}.jpg", quality=95)
    return index_videos(tmp_path / "root", cache=tmp_path / "cache")


def test_extracted_frames(extracted):
    boxes = [None, np.array([48, 9, 90, 101])]
    whole, part = decode_clips(extracted, 0, [ClipRequest(np.array([11, 0, 5, 5]), box) for box in boxes])
    assert numbers(whole) == [11, 0, 5, 5]
    assert (part == whole[:, 48:90, 9:101]).all()
    assert np.abs(whole[1].astype(int) - numbered_frame(0, 96, 128)).mean() < 4


def test_damaged_extracted_frames(extracted):
    def why(frames):
        with pytest.raises(VideoError) as caught:
            one_clip(extracted, frames)
        return caught.value.reason

    folder = os.fsdecode(extracted.path(0))
    names = sorted(os.listdir(folder))
    paths = [os.path.join(folder, name) for name in names]
    cut_off(Path(paths[3]), 0.5)
    assert why([3]) == "truncated or damaged"
    Image.fromarray(numbered_frame(4, 48, 64)).save(paths[4])
    assert why([4]) == "changed size"
    os.remove(paths[5])
    os.mkfifo(paths[5])
    assert why([5]) == "not a file"
    assert numbers(one_clip(extracted, [2, 6])) == [2, 6]
    os.remove(paths[11])
    assert why([11]) == "numbers of frames are missing or not unique"
    os.remove(paths[7])
    assert why([0]) == "numbers of frames are missing or not unique"
    shutil.rmtree(folder)
    assert why([0]) == "missing"


def test_planned_frames_come_once_each(videos):
    found = [number for number, _ in planned_frames(videos["h264"], 0, np.array([0, 4, 30, 59]))]
    assert sorted(found) == [0, 4, 30, 59]
