"""The index of videos: timelines, parts, frames, the cache, and the reasons for bad files."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from helpers.videos import cut_off, number_of, set_edit_start, write_streams, write_video
from sce_fast.data.video import files
from sce_fast.data.video.files import Ragged
from sce_fast.data.video.index import index_videos
from sce_fast.data.video.probe import VideoFacts

TIMES = [0, 30, 90, 100, 170, 200, 290, 300, 400, 410]  # milliseconds


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Write two classes of videos: H.264 with B-frames, VP9 at irregular times, MPEG-4 in AVI; return the folder."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a" / "constant", frames=20)
    write_video(folder / "b" / "variable", "vp9", frames=10, times=TIMES)
    write_video(folder / "b" / "untimed", "mpeg4", frames=10, size=(64, 48))
    set_edit_start(write_video(folder / "a" / "edited", frames=20), 5)
    return folder


def columns(index):
    """Return all columns of an index as plain values."""
    names = [field.name for field in fields(index) if field.name not in ("listing", "timelines", "key_frames")]
    plain = {name: getattr(index, name) for name in names}
    times = {**vars(index.timelines), "variable": {i: t.tolist() for i, t in index.timelines.variable.items()}}
    values = {**plain, **times, "keys": [keys.tolist() for keys in index.key_frames]}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def test_the_columns_of_an_index(videos):
    index = index_videos(videos)
    assert index.listing.names == ["a/constant.mp4", "a/edited.mp4", "b/untimed.avi", "b/variable.webm"]
    assert index.labels.tolist() == [0, 0, 1, 1]
    assert index.bad == {}
    assert index.sizes.tolist() == [[96, 128], [96, 128], [64, 48], [96, 128]]
    assert index.codecs.tolist() == ["h264", "h264", "mpeg4", "vp9"]
    assert index.pixel_formats.tolist() == ["yuv420p"] * 4
    assert index.timed.tolist() == [True, True, False, True]
    assert index.plain.tolist() == [True, False, False, True]
    assert [keys.tolist() for keys in index.key_frames][:2] == [[0, 12], [7]]
    times = index.timelines
    assert times.frames.tolist() == [20, 15, 10, 10]
    assert times.step.tolist() == [512, 512, 1, 0]
    assert (times.step * times.tick)[:3].tolist() == pytest.approx([0.04] * 3)
    assert {i: ticks.tolist() for i, ticks in times.variable.items()} == {3: TIMES}
    assert (times.duration * times.tick)[:3].tolist() == pytest.approx([0.8, 0.6, 0.4])
    assert times.duration[3] > TIMES[-1]
    assert times.offset.tolist() == times.first.tolist() == [0] * 4


def test_any_number_of_threads_and_the_cache_give_the_same_index(videos, tmp_path, monkeypatch):
    first = columns(index_videos(videos, threads=1, cache=tmp_path / "1"))
    assert columns(index_videos(videos, threads=3, cache=tmp_path / "3")) == first
    monkeypatch.setattr(files, "probe", None)
    assert columns(index_videos(videos, cache=tmp_path / "3")) == first


def test_only_changed_and_new_files_are_probed_again(videos, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(videos, data)
    probed = []
    original = files.probe
    monkeypatch.setattr(files, "probe", lambda path: probed.append(os.path.basename(path)) or original(path))
    first = index_videos(data)
    assert len(probed) == 4
    write_video(data / "a" / "constant", frames=12)
    write_video(data / "a" / "bright", frames=5)
    (data / "b" / "untimed.avi").unlink()
    probed.clear()
    changed = index_videos(data)
    assert sorted(probed) == [b"bright.mp4", b"constant.mp4"]
    assert changed.timelines.frames.tolist() == [5, 12, 15, 10]
    assert changed.fingerprint != first.fingerprint
    assert changed.timelines.variable[3].tolist() == TIMES
    fresh = index_videos(data, cache=tmp_path / "fresh")
    assert columns(fresh) == columns(changed)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged"])
def test_a_damaged_cache_is_passed_over(videos, tmp_path, content):
    first = index_videos(videos, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert columns(index_videos(videos, cache=tmp_path)) == columns(first)


def test_images_and_videos_of_one_folder_have_caches_of_their_own(videos, tmp_path):
    from sce_fast.data.index import index_images

    data = tmp_path / "data"
    shutil.copytree(videos, data)
    Image.new("RGB", (5, 4)).save(data / "a" / "cover.png")
    for _ in range(2):
        assert index_images(data, cache=tmp_path / "cache").sizes.tolist() == [[4, 5]]
        assert len(index_videos(data, cache=tmp_path / "cache")) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


def with_bad_files(folder):
    """Write one bad file of each kind and return name → reason."""
    write_video(folder / "good", frames=5)
    cut_off(write_video(folder / "cut", "vp9", frames=5), 0.7)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>404</html>")
    write_streams(folder / "sound.mp4", ["audio"])
    os.mkfifo(folder / "pipe.mp4")
    os.symlink("nowhere.mp4", folder / "link.mp4")
    os.symlink("turn.mp4", folder / "turn.mp4")
    (folder / "frames").mkdir()
    for number in (1, 2, 4):
        Image.new("RGB", (5, 4)).save(folder / "frames" / f"{number:08d}.jpg")
    return {
        "cut.webm": "truncated or damaged",
        "empty.mp4": "empty",
        "frames": "numbers of frames are missing or not unique",
        "link.mp4": "missing",
        "page.mp4": "not a video",
        "pipe.mp4": "not a file",
        "sound.mp4": "no video stream",
        "turn.mp4": "a link to itself",
    }


def test_bad_files_are_in_the_index_with_their_reasons(tmp_path, monkeypatch, capfd):
    reasons = with_bad_files(tmp_path / "data")
    for attempt in range(2):
        index = index_videos(tmp_path / "data")
        assert {index.listing.names[i]: reason for i, reason in index.bad.items()} == reasons
        assert [index.listing.names[i] for i in np.flatnonzero(index.timelines.frames)] == ["good.mp4"]
        assert [index.listing.names[i] for i in np.flatnonzero(index.sizes[:, 0])] == ["good.mp4"]
        if attempt == 0:
            monkeypatch.setattr(files, "probe", None)  # the reasons are cached, too
    with pytest.raises(ValueError, match=r"(?s)8 of 9 files cannot be used .*page.mp4: not a video"):
        index.require_readable()
    assert capfd.readouterr() == ("", "")


def test_what_may_not_be_read_is_tried_again(videos, monkeypatch):
    monkeypatch.setattr(files, "probe", lambda path: "unreadable")
    assert set(index_videos(videos).bad.values()) == {"unreadable"}
    monkeypatch.undo()
    assert index_videos(videos).bad == {}


def shown(path, start, end):
    """Return numbers and times of the frames that a plain loop finds in [start, end) seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    seconds = [(frame.pts - frames[0].pts) * frames[0].time_base for frame in frames]
    inside = [i for i, time in enumerate(seconds) if Fraction(str(start)) <= time < Fraction(str(end))]
    return [number_of(frames[i].to_ndarray(format="rgb24")) for i in inside], inside, [frames[i].pts for i in inside]


@pytest.mark.parametrize("part", [(0, 0.2), (0.2, 0.4), (0.03, 0.29), (0.17, 9), (0.1, 0.41)])
@pytest.mark.parametrize("name", ["a/constant.mp4", "b/variable.webm"])
def test_the_frames_of_a_part(videos, tmp_path, name, part):
    (tmp_path / "list.txt").write_text(f"{videos}/{name}\t{part[0]}\t{part[1]}\n{videos}/{name}\t0\t100\n")
    times = index_videos(tmp_path / "list.txt").timelines
    numbers, inside, ticks = shown(videos / name, *part)
    assert times.frames[0] == len(inside) > 0
    assert times.offset[0] == inside[0] == numbers[0]
    assert times.first[0] == ticks[0]
    frames = np.arange(len(inside))
    offsets = times.variable[0] if 0 in times.variable else frames * times.step[0]
    assert offsets.tolist() == [tick - ticks[0] for tick in ticks]
    whole = index_videos(videos).timelines
    sample = index_videos(videos).listing.names.index(name)
    end = times.first[0] + times.duration[0]  # where the next frame begins, or the video ends
    after = [tick for tick in shown(videos / name, 0, 100)[2] if tick > ticks[-1]]
    assert end == (after[0] if after else whole.first[sample] + whole.duration[sample])
    assert times.frames[1] == whole.frames[sample]
    assert times.duration[1] == whole.duration[sample]


def test_parts_of_one_file_are_samples_of_their_own(videos, tmp_path, monkeypatch):
    path = videos / "a" / "constant.mp4"
    (tmp_path / "list.txt").write_text(f"{path} 3 0 0.2\n{path} 4\n{path} 3 0.41 0.43\n{path} 4 5 6\nnone.mp4 3 0 1\n")
    probed = []
    original = files.probe
    monkeypatch.setattr(files, "probe", lambda path: probed.append(path) or original(path))
    index = index_videos(tmp_path / "list.txt")
    assert len(probed) == 1
    assert index.timelines.frames.tolist() == [5, 20, 0, 0, 0]
    nothing = "no frames between start and end"
    assert index.bad == {2: nothing, 3: nothing, 4: "missing"}
    assert index.sizes.tolist() == [[96, 128]] * 2 + [[0, 0]] * 3
    again = index.listed_as([*index.listing.entries()[1::-1], "other.mp4"])
    assert again.timelines.frames.tolist() == [20, 5, 0]
    assert again.bad == {2: "missing"}
    (tmp_path / "list.txt").write_text(f"{path} 3 0 0.3\n{path} 4\n{path} 3 0.41 0.43\n{path} 4 5 6\nnone.mp4 3 0 1\n")
    assert index_videos(tmp_path / "list.txt").fingerprint != index.fingerprint


def test_subset_and_listed_as_take_all_columns(videos):
    index = index_videos(videos)
    part = index.subset(np.array([3, 0, 3]))
    assert part.listing.names == ["b/variable.webm", "a/constant.mp4", "b/variable.webm"]
    assert part.codecs.tolist() == ["vp9", "h264", "vp9"]
    assert {i: ticks.tolist() for i, ticks in part.timelines.variable.items()} == {0: TIMES, 2: TIMES}
    assert [keys.tolist() for keys in part.key_frames] == [index.key_frames[i].tolist() for i in (3, 0, 3)]
    again = index.listed_as(["gone.mp4", *index.listing.names[::-1]])
    assert again.bad == {0: "missing"}
    assert again.timelines.frames.tolist() == [0, 10, 10, 15, 20]
    assert again.labels is None
    assert columns(index.subset(np.arange(4))) == columns(index)


def test_folders_of_extracted_frames(tmp_path):
    for number in range(12):
        folder = tmp_path / "data" / "class" / "video"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40)).save(folder / f"{number + 1:08d}.jpg")
    for _ in range(2):
        index = index_videos(tmp_path / "data", frame_rate=25)
        assert index.codecs.tolist() == ["frames"]
        assert index.sizes.tolist() == [[40, 50]]
        assert index.timelines.frames.tolist() == [12]
        assert (index.timelines.step * index.timelines.tick).tolist() == [1 / 25]
        assert (index.timelines.duration * index.timelines.tick).tolist() == [12 / 25]
        assert index.key_frames[0].tolist() == list(range(12))
        assert (index.timed.tolist(), index.plain.tolist()) == ([True], [False])
    assert index_videos(tmp_path / "data").timelines.tick.tolist() == [1 / 30]  # the rate is not cached
    Image.new("RGB", (50, 40)).save(folder / "00000013.jpg")
    assert index_videos(tmp_path / "data").timelines.frames.tolist() == [13]
    with pytest.raises(ValueError, match=r"frame_rate=0: expected frames per second, more than 0"):
        index_videos(tmp_path / "data", frame_rate=0)


def test_ragged_arrays():
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-9, 9, count) for count in (3, 0, 1, 5)]
    ragged = Ragged.of(arrays)
    assert len(ragged) == 4
    assert all(np.array_equal(ragged[i], array) for i, array in enumerate(arrays))
    assert np.array_equal(ragged[-1], arrays[-1])
    with pytest.raises(IndexError):
        ragged[4]
    taken = ragged.take(np.array([3, -1, 0, 3, 1]))
    expected = [arrays[3], [], arrays[0], arrays[3], []]
    assert [row.tolist() for row in taken] == [list(row) for row in expected]
    assert ragged.values.dtype == np.int32
    assert Ragged.of([np.array([2**31])]).values.tolist() == [2**31]
    assert len(Ragged.of([]).take(np.array([-1]))[0]) == 0


def many_files(tmp_path, monkeypatch, count):
    """Write so many files that stand for videos of 300 frames at 30 frames/s in WebM, whose times are rounded."""
    times = np.round(np.arange(300) * 1000 / 30).astype(np.int64)
    keys = np.arange(0, 300, 60)
    facts = VideoFacts((256, 340), "vp9", times, 10000, Fraction(1, 1000), keys, pixel_format="yuv420p")
    monkeypatch.setattr(files, "probe", lambda path: facts)
    (tmp_path / "data").mkdir()
    for number in range(count):
        (tmp_path / "data" / f"{number:06d}.webm").write_bytes(b"-")
    return tmp_path / "data"


def test_several_thousand_videos_load_from_the_cache_at_once(tmp_path, monkeypatch):
    data = many_files(tmp_path, monkeypatch, 4000)
    first = index_videos(data)
    monkeypatch.setattr(files, "probe", None)
    started = time.process_time()
    again = index_videos(data)
    assert time.process_time() - started < 0.7  # 0.1 s on two cores
    assert np.array_equal(again.timelines.variable[3999], first.timelines.variable[3999])
    # 4 bytes a frame, in one array that all videos share
    assert {ticks.dtype for ticks in again.timelines.variable.values()} == {np.dtype(np.int32)}
    assert again.timelines.variable[0].base is again.timelines.variable[1].base


def test_an_interrupted_index_keeps_what_it_has_read(tmp_path, monkeypatch):
    data = many_files(tmp_path, monkeypatch, 40)
    original, done = files.probe, []

    def interrupt(path):
        if len(done) == 25:
            raise KeyboardInterrupt
        done.append(path)
        return original(path)

    monkeypatch.setattr(files, "probe", interrupt)
    monkeypatch.setattr(files, "FILES_PER_CACHE_WRITE", 10)
    with pytest.raises(KeyboardInterrupt):
        index_videos(data, threads=1)
    done.clear()
    assert len(index_videos(data, threads=1)) == 40
    assert len(done) == 20


def test_without_a_video_there_is_no_need_for_pyav():
    code = "import sys, sce_fast.data.video.index, sce_fast.tools.scan; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
