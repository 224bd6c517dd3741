"""Clips hold the frames that the published rules give, and start where their sampler says."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from helpers.timelines import timelines
from sce_fast.data.video.clips import ClipSampling, Spans, random_spans, uniform_clips
from sce_fast.util.philox import Draw, uniform

MANY = 8000


def spans(sampling, lines, samples=None, view=0, seed=3, epoch=2) -> Spans:
    """Return random spans of one view; without samples, of many draws for the first video."""
    if samples is None:
        count = len(lines.frames)
        lines, samples = lines.subset(np.arange(MANY) % count), np.arange(MANY)
    views = np.full(len(samples), view)
    return random_spans(sampling, lines, seed=seed, epoch=epoch, samples=np.array(samples), views=views)


def frames_of(first, count, frames):
    return Spans(np.array(first), np.array(count)).evenly(frames).tolist()


def test_frames_are_spread_by_the_linspace_rule():
    assert frames_of(5, 77, 8) == [5, 15, 26, 37, 48, 59, 70, 81]  # 76 / 7 = 10.86
    assert frames_of(0, 64, 8) == [0, 9, 18, 27, 36, 45, 54, 63]
    assert frames_of(0, 8, 8) == list(range(8))
    assert frames_of(2, 3, 8) == [2, 2, 2, 2, 3, 3, 3, 4]
    assert frames_of(7, 1, 4) == [7, 7, 7, 7]
    assert frames_of(7, 30, 1) == [7]
    assert frames_of([0, 10], [2, 4], 2) == [[0, 1], [10, 13]]


@given(first=st.integers(0, 10**6), count=st.integers(1, 10**4), frames=st.integers(1, 64))
def test_spread_frames_equal_the_formula_in_fractions(first, count, frames):
    steps = [Fraction(count - 1) * i / max(frames - 1, 1) for i in range(frames)]
    assert frames_of(first, count, frames) == [first + math.floor(step) for step in steps]


@given(
    rate=st.sampled_from([(1001, 30000), (512, 12800), (15015, 360000)]),
    count=st.integers(1, 400),
    seconds=st.sampled_from([Fraction(64, 25), Fraction(32, 25), Fraction(1, 100), Fraction(10)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_clips_follow_the_published_formula(rate, count, seconds, seed):
    """Frames from ceil(fps · start) up to ceil(fps · end), the start drawn from U(0, duration − clip)."""
    step, per_second = rate
    fps = Fraction(per_second, step)
    drawn = spans(
        ClipSampling(seconds=float(seconds)), timelines((count, step), tick=1 / per_second), [0], seed=seed, view=1
    )
    place = Fraction(float(uniform(seed, 2, np.array([0]), Draw.CLIP_START, view=1)[0]))
    start = place * max(count / fps - seconds, 0)
    first, end = math.ceil(fps * start), math.ceil(fps * min(start + seconds, count / fps))
    if end == first:  # no frame begins in this time
        first, end = first - 1, first
    assert (drawn.first[0], drawn.count[0]) == (first, end - first)


def test_starts_in_seconds_are_uniform():
    """10 s at 25 frames/s: the start lies in [0, 7.44] s, so the first frame is one of 0 … 186."""
    drawn = spans(ClipSampling(), timelines((250, 40)))
    assert set(drawn.count.tolist()) == {64}
    assert drawn.first.max() == 186
    assert scipy.stats.kstest(drawn.first - 0.5, scipy.stats.uniform(-0.5, 187).cdf).pvalue > 0.01


def test_views_start_independently():
    first = [spans(ClipSampling(), timelines((250, 40)), view=view).first for view in range(3)]
    assert np.abs(np.corrcoef(first) - np.eye(3)).max() < 0.04


def test_frames_a_stride_apart():
    """Span 29 in 40 frames: starts 0 … 11, each as likely as the others."""
    sampling = ClipSampling(seconds=None, stride=4)
    drawn = spans(sampling, timelines((40, 40)))
    assert (np.diff(drawn.evenly(8), axis=1) == 4).all()
    starts, counts = np.unique(drawn.first, return_counts=True)
    assert starts.tolist() == list(range(12))
    assert scipy.stats.chisquare(counts).pvalue > 0.01
    only = spans(sampling, timelines((29, 40)), [0]).evenly(8)
    assert only.tolist() == [[0, 4, 8, 12, 16, 20, 24, 28]]


@pytest.mark.parametrize("sampler", ["random", "cvrl"])
def test_short_videos_are_one_clip_and_repeat_frames(sampler):
    """Videos of 10 and of 3 frames, shorter than a clip."""
    expected = [[0, 1, 2, 3, 5, 6, 7, 9], [0, 0, 0, 0, 1, 1, 1, 2]]
    lines = timelines((10, 40), (3, 40), [0, 30, 80, 90])
    for settings in ({}, {"seconds": None, "stride": 4}):
        sampling = ClipSampling(sampler=sampler, **settings)
        for view in (0, 1):
            assert spans(sampling, lines, [0, 1, 2], view=view).evenly(8).tolist() == [*expected, expected[1]]
        for clips in uniform_clips(sampling, lines, np.arange(3), 4).swapaxes(0, 1):
            assert clips.tolist() == [*expected, expected[1]]


def test_a_clip_in_which_no_frame_begins_shows_the_frame_on_display():
    """A still of 10 s between two short frames: clips of 1 s that start in (0, 9.04] s show it."""
    drawn = spans(ClipSampling(seconds=1.0), timelines([0, 40, 10040, 10080]))
    still = (drawn.first == 1) & (drawn.count == 1)
    assert still.mean() == pytest.approx(9.04 / 9.08, abs=0.002)


def test_a_clip_of_a_variable_rate_holds_the_frames_of_its_time():
    """After 1 s of 10 frames/s come 9 s of 50 frames/s, until 10 s."""
    shown_at = [*range(0, 1000, 100), *range(1000, 10001, 20)]
    lines = timelines(shown_at)
    clips = uniform_clips(ClipSampling(seconds=2.0, frames=2), lines, np.array([0]), 5)
    # [0, 2) s holds 10 + 50 frames, each later clip 100.
    assert clips.tolist() == [[[0, 59], [60, 159], [160, 259], [260, 359], [360, 459]]]


def test_speeds_cover_more_time():
    sampling = ClipSampling(speeds=(0.5, 1.0, 2.0))
    lengths, times = np.unique(spans(sampling, timelines((500, 40))).count, return_counts=True)
    assert lengths.tolist() == [32, 64, 128]
    assert scipy.stats.chisquare(times).pvalue > 0.01
    strided = spans(dataclasses.replace(sampling, seconds=None, stride=4), timelines((500, 40)))
    assert {tuple(np.diff(clip)) for clip in strided.evenly(8).tolist()} == {(2,) * 7, (4,) * 7, (8,) * 7}


def test_duration_jitter_is_uniform_around_one():
    drawn = spans(ClipSampling(seconds=10.0, duration_jitter=0.2), timelines((100_000, 1)))
    covered = drawn.count / 10_000
    assert scipy.stats.kstest(covered, scipy.stats.uniform(0.8, 0.4).cdf).pvalue > 0.01
    assert (drawn.first + drawn.count).max() <= 100_000


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_cvrl_distances_have_the_published_density(power):
    """P(t) ∝ 1 − (t/T)^p, so P(distance < t) = ((p + 1) t/T − (t/T)^(p + 1)) / p; T is 90 s here."""
    sampling = ClipSampling(sampler="cvrl", cvrl_power=power, seconds=10.0)
    a, b = (spans(sampling, timelines((100_000, 1)), view=view).first / 90_000 for view in (0, 1))
    distance = np.abs(a - b)
    assert scipy.stats.kstest(distance, lambda t: ((power + 1) * t - t ** (power + 1)) / power).pvalue > 0.01
    assert scipy.stats.kstest(np.minimum(a, b) / (1 - distance), "uniform").pvalue > 0.01  # anywhere that fits
    assert (a < b).mean() == pytest.approx(0.5, abs=0.02)


def test_cvrl_at_power_1_is_random():
    """The distance of two independent uniform starts has the density 2 (1 − t/T) / T."""
    sampling = ClipSampling(sampler="cvrl", seconds=10.0)
    a, b = (spans(sampling, timelines((100_000, 1)), view=view).first / 90_000 for view in (0, 1))
    assert scipy.stats.kstest(a, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_cvrl_views_are_pairs_of_equal_length():
    sampling = ClipSampling(sampler="cvrl", cvrl_power=0.2, speeds=(1.0, 2.0), duration_jitter=0.3)
    clips = [spans(sampling, timelines((2000, 40)), view=view) for view in range(4)]
    correlation = np.corrcoef([clip.first for clip in clips])
    assert min(correlation[0, 1], correlation[2, 3]) > 0.2
    assert np.abs(correlation[:2, 2:]).max() < 0.04
    for a, b in ((0, 1), (2, 3)):  # a clip between two frames may hold one frame more or less
        assert np.abs(clips[a].count - clips[b].count).max() <= 1
    assert np.abs(clips[0].count - clips[2].count).max() > 50


@pytest.mark.parametrize("sampler", ["random", "cvrl"])
@given(
    count=st.integers(1, 300),
    frames=st.integers(1, 16),
    stride=st.integers(0, 40),
    seconds=st.floats(0.001, 20),
    speeds=st.lists(st.floats(0.1, 8), min_size=1, max_size=3),
    jitter=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_clips_lie_in_their_video(sampler, count, frames, stride, seconds, speeds, jitter, seed):
    sampling = ClipSampling(
        frames=frames, seconds=None if stride else seconds, stride=stride or None, sampler=sampler,
        speeds=tuple(speeds), duration_jitter=jitter,
    )  # fmt: skip
    shown_at = np.cumsum(np.random.default_rng(seed).integers(1, 100, count + 1)).tolist()
    lines = timelines((count, 33), shown_at).subset(np.array([0, 1] * 20))
    clips = spans(sampling, lines, np.arange(40), seed=seed).evenly(frames)
    tests = uniform_clips(sampling, lines, np.arange(40), 3).reshape(-1, frames)
    for numbers in (clips, tests):
        assert numbers.shape[1] == frames
        assert numbers.min() >= 0
        assert numbers.max() < count
        assert (np.diff(numbers, axis=1) >= 0).all()


def test_uniform_clips_by_hand():
    """10 s at 10 frames/s, clips of 2 s: starts 0 … 8 s; and 100 frames, spans of 10: starts 0 … 90."""
    lines, samples = timelines((100, 100)), np.array([0])
    by_time, by_stride = ClipSampling(seconds=2.0, frames=4), ClipSampling(seconds=None, stride=3, frames=4)

    def first(sampling, clips):
        return uniform_clips(sampling, lines, samples, clips)[0, :, 0].tolist()

    assert uniform_clips(by_time, lines, samples, 1).tolist() == [[[40, 46, 52, 59]]]
    assert first(by_time, 2) == [0, 80]
    assert first(by_time, 5) == [0, 20, 40, 60, 80]
    assert first(by_time, 10) == [0, 9, 18, 27, 36, 45, 54, 63, 72, 80]
    assert uniform_clips(by_stride, lines, samples, 1).tolist() == [[[45, 48, 51, 54]]]
    assert first(by_stride, 4) == [0, 30, 60, 90]
    assert first(by_stride, 5) == [0, 22, 45, 67, 90]


@given(
    rate=st.sampled_from([(1001, 30000), (512, 12800), (15015, 360000), (1, 30)]),
    count=st.integers(1, 1000),
    clips=st.integers(2, 12),
    stride=st.integers(0, 9),
)
def test_uniform_clips_reach_from_the_first_to_the_last_frame(rate, count, clips, stride):
    sampling = ClipSampling(seconds=None if stride else 1.28, stride=stride or None)
    lines = timelines((count, rate[0]), tick=1 / rate[1])
    numbers = uniform_clips(sampling, lines, np.array([0]), clips)[0]
    assert (numbers[0, 0], numbers[-1, -1]) == (0, count - 1)
    gaps = np.diff(numbers[:, 0])
    assert gaps.max() - gaps.min() <= 1


def test_uniform_clips_leave_out_speeds_jitter_and_differences():
    lines, samples = timelines((400, 40), [0, 30, 50, 90]), np.array([1, 0])
    plain = ClipSampling()
    other = ClipSampling(speeds=(2.0,), duration_jitter=0.5, temporal_difference=1.0, sampler="cvrl")
    assert np.array_equal(uniform_clips(plain, lines, samples, 10), uniform_clips(other, lines, samples, 10))


def test_videos_without_frames_are_refused():
    lines = timelines((10, 40), (0, 40))
    for sampling in (ClipSampling(), ClipSampling(seconds=None, stride=2)):
        with pytest.raises(ValueError, match="video 1 has no frames"):
            spans(sampling, lines, [0, 1])
        with pytest.raises(ValueError, match="video 1 has no frames"):
            uniform_clips(sampling, lines, np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="clips=0"):
        uniform_clips(ClipSampling(), lines, np.array([0]), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames=0: expected at least 1"),
        ({"stride": 4}, "seconds=2.56, stride=4: expected one of them"),
        ({"seconds": None}, "seconds=None, stride=None: expected one of them"),
        ({"seconds": 0.0}, "seconds=0.0: expected a positive time"),
        ({"seconds": math.nan}, "seconds=nan"),
        ({"seconds": None, "stride": 0}, "stride=0: expected at least 1"),
        ({"sampler": "uniform"}, "sampler='uniform': expected one of random, cvrl"),
        ({"cvrl_power": 0.0}, "cvrl_power=0.0"),
        ({"speeds": ()}, r"speeds=\(\): expected one or more"),
        ({"speeds": (1.0, -1.0)}, "speeds="),
        ({"duration_jitter": 1.0}, "duration_jitter=1.0"),
        ({"temporal_difference": 1.5}, "temporal_difference=1.5: expected a probability"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ClipSampling(**settings)
