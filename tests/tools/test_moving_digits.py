"""The video demo's data set: labels, motions, codecs, rates, and that only a whole one counts as written."""

from collections import Counter
from itertools import product

import av
import numpy as np
import pytest

from sce_fast.data.video.decode import ClipRequest, decode_clips
from sce_fast.data.video.index import VideoIndex, index_videos
from sce_fast.tools import moving_digits
from sce_fast.tools.moving_digits import BACKGROUND, DIGITS, MOTIONS, PARTS, RATE, SECONDS, SIDE, write_moving_digits

FEW = {"train": 4, "test": 2}  # 96 and 48 videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos") / "moving_digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving_digits, "PARTS", FEW)
        yield write_moving_digits(folder)


@pytest.fixture(scope="module")
def motions(videos) -> VideoIndex:
    return index_videos(videos.videos("train", "motion"), cache=videos.folder.with_name("cache"))


def frames_of(index: VideoIndex, sample: int, count: int | None = None):
    wanted = np.arange(count or index.timelines.frames[sample])
    (frames,) = decode_clips(index, sample, [ClipRequest(wanted, None)])
    return frames


def path_of(frames):
    """Return the digit's centre (F, 2) as x, y on the torus of the frame, unrolled, in pixels."""
    ink = np.clip(frames.min(axis=-1) / 255 - 0.6, 0, None)  # backgrounds are coloured, digits white
    turn = np.exp(2j * np.pi * np.arange(SIDE) / SIDE)
    angles = np.stack([np.angle(ink.sum(axis=axis) @ turn) for axis in (1, 2)], axis=1)
    return np.unwrap(angles, axis=0) * SIDE / (2 * np.pi)


def motion_of(path):
    """Return the motion of a centre (F, 2): straight if it ends far from its start, else by the sense of rotation."""
    (dx, dy), steps = path[-1] - path[0], np.diff(path[::3], axis=0)
    if max(abs(dx), abs(dy)) > 60:
        return ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("up", "down")[int(dy > 0)]
    turns = steps[:-1, 0] * steps[1:, 1] - steps[:-1, 1] * steps[1:, 0]
    return "clockwise" if turns.sum() > 0 else "counter-clockwise"  # y points down


def test_labels_are_balanced_over_motions_digits_and_codecs():
    counts, variable = Counter(), Counter()
    for part, digit, clip in moving_digits._clips():
        counts[part, clip.motion, digit, clip.ending] += 1
        variable[part, clip.ending, clip.variable] += 1
    assert set(counts) == set(product(PARTS, MOTIONS, DIGITS, ("mp4", "webm")))
    assert all(count == PARTS[part] / 2 for (part, *_), count in counts.items())
    for part, ending in product(PARTS, ("mp4", "webm")):
        assert variable[part, ending, True] == pytest.approx(12 * PARTS[part] / 4, abs=1)


def test_no_test_video_shows_a_handwritten_digit_of_a_training_video():
    clips = list(moving_digits._clips())
    train, test = ({clip.digit.tobytes() for part, _, clip in clips if part == wanted} for wanted in PARTS)
    assert not train & test
    assert (len(train), len(test)) == (130 * len(DIGITS), pytest.approx(50 * len(DIGITS), abs=10))
    assert len({clip.seed for _, _, clip in clips}) == len(clips) == 1200


def test_the_lists_of_a_part_name_the_same_videos(videos):
    for part, copies in FEW.items():
        by_label = {}
        for label, classes in (("motion", MOTIONS), ("digit", DIGITS)):
            lines = [line.split("\t") for line in videos.videos(part, label).read_text().splitlines()]
            assert Counter(name for _, name in lines) == dict.fromkeys(classes, 24 * copies // len(classes))
            by_label[label] = [path for path, _ in lines]
            assert all((videos.folder / path).parent == videos.folder / part for path in by_label[label])
        assert by_label["motion"] == by_label["digit"]


def test_all_videos_are_readable(videos, motions):
    assert not motions.bad
    assert (motions.sizes == SIDE).all()
    assert (motions.timelines.frames == SECONDS * RATE).all()
    assert Counter(motions.codecs.tolist()) == {"h264": 48, "vp9": 48}
    np.testing.assert_allclose(motions.timelines.seconds(np.arange(96)), SECONDS, atol=0.15)
    assert not index_videos(videos.videos("test", "digit"), cache=videos.folder.with_name("cache")).bad


def test_some_videos_of_each_codec_have_a_variable_rate(motions):
    variable = [sample for sample in motions.timelines.variable if np.ptp(intervals(motions, sample)) > 0.03]
    assert Counter(motions.codecs[variable].tolist()) == {"h264": 12, "vp9": 12}
    spread = np.concatenate([intervals(motions, sample) for sample in variable])
    assert 0.02 < spread.min() < 0.04
    assert 0.09 < spread.max() < 0.12


def intervals(index, sample):
    return np.diff(index.timelines.variable[sample]) * index.timelines.tick[sample]


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_digit_moves_as_its_label_says(motions, motion):
    samples = np.flatnonzero(motions.labels == motions.listing.classes.index(motion))
    assert [motion_of(path_of(frames_of(motions, sample))) for sample in samples] == [motion] * len(samples)


def test_the_speed_is_even_although_the_rate_is_not(motions):
    straight = [m for m in motions.timelines.variable if motions.listing.classes[motions.labels[m]] in MOTIONS[:4]]
    for sample in straight[:6]:
        path, seconds = path_of(frames_of(motions, sample)), motions.timelines.variable[sample]
        axis = np.ptp(path, axis=0).argmax()
        times = seconds * motions.timelines.tick[sample]
        rest = path[:, axis] - np.polyval(np.polyfit(times, path[:, axis], 1), times)
        assert np.abs(rest).max() < 1.5  # a frame early or late would be 2 pixels or more


def test_the_first_frame_tells_no_motion(motions):
    """Centres are spread over the frame alike for all motions."""
    starts = np.array([path_of(frames_of(motions, sample, 1))[0] % SIDE for sample in range(len(motions))])
    for label in range(len(MOTIONS)):
        assert (starts[motions.labels == label].std(axis=0) > 0.2 * SIDE).all()


def test_backgrounds_differ_from_each_other_and_are_darker_than_digits():
    pictures = np.stack([moving_digits._background(np.random.default_rng(seed)) for seed in range(50)])
    luminance = pictures @ moving_digits.LUMINANCE
    means = luminance.mean(axis=(1, 2))
    assert BACKGROUND[0] - 0.05 < means.min() < 0.25
    assert 0.35 < means.max() < BACKGROUND[1] + 0.01
    assert luminance.max() < moving_digits.INK - 0.1
    places = np.corrcoef(luminance.reshape(50, -1)) - np.eye(50)
    assert np.abs(places).max() < 0.3
    waves = np.abs(np.fft.fft2(luminance / means[:, None, None] - 1))  # the same wherever a texture is moved
    likeness = np.corrcoef(waves.reshape(50, -1))
    assert len(np.unique(likeness > 0.85, axis=0)) == moving_digits.TEXTURES
    assert Counter(pictures.mean(axis=(1, 2)).argmax(axis=1).tolist()).keys() == {0, 1, 2}  # red, green, blue


def test_an_interrupted_writing_leaves_nothing_that_passes_as_whole(tmp_path, monkeypatch):
    write, calls = moving_digits._write, []

    def interrupted(path, clip):
        calls.append(path)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(path, clip)

    monkeypatch.setattr(moving_digits, "PARTS", {"train": 1, "test": 1})
    monkeypatch.setattr(moving_digits, "DIGITS", ("3",))
    monkeypatch.setattr(moving_digits, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_moving_digits(tmp_path / "videos", threads=1)
    assert not (tmp_path / "videos").exists()
    (tmp_path / "videos.writing" / "test" / "left over.mp4").write_bytes(b"")
    monkeypatch.setattr(moving_digits, "_write", write)
    written = write_moving_digits(tmp_path / "videos")
    assert written.complete
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]
    assert len(list((tmp_path / "videos").rglob("*.*"))) == 12 + 4


def test_videos_are_written_once_and_always_the_same(videos, tmp_path, monkeypatch):
    stamp = videos.videos("test", "digit").stat().st_mtime_ns
    assert write_moving_digits(videos.folder).videos("test", "digit").stat().st_mtime_ns == stamp
    monkeypatch.setattr(moving_digits, "PARTS", FEW)
    written = {clip.seed: clip for _, _, clip in moving_digits._clips()}
    names = sorted(path.relative_to(videos.folder) for path in videos.folder.rglob("*.*") if path.suffix != ".txt")
    for name, clip in list(zip(names, by_number(written.values()), strict=True))[::20]:
        moving_digits._write(tmp_path / name.name, clip)
        assert (tmp_path / name.name).read_bytes() == (videos.folder / name).read_bytes()


def by_number(clips):
    """Return the clips in the order of their sorted file names: test after train, so 0000 to 0095 come last."""
    clips = list(clips)
    return clips[96:] + clips[:96]


def test_times_are_kept_to_the_millisecond(tmp_path):
    times = np.array([0, 40, 170, 200, 330])
    for ending in ("mp4", "webm"):
        path = tmp_path / f"video.{ending}"
        moving_digits.encode(path, np.zeros((5, 64, 64, 3), np.uint8), times)
        with av.open(str(path)) as container:
            assert [round(1000 * frame.time) for frame in container.decode(video=0)] == times.tolist()
