"""Frame numbers and times agree exactly, at constant and variable rates."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.timelines import timelines
from sce_fast.data.video.timeline import is_rounded_line

# frames per second → (seconds of a tick, ticks between two frames) as containers write them
RATES = {
    "25 (mp4)": (Fraction(1, 12800), 512),
    "30 (90 kHz)": (Fraction(1, 90000), 3000),
    "29.97 (mp4)": (Fraction(1, 30000), 1001),
    "23.976 (90 kHz)": (Fraction(1, 360000), 15015),
    "15 (avi)": (Fraction(1, 15), 1),
    "50 (mkv)": (Fraction(1, 1000), 20),
    "60 (ns)": (Fraction(1, 10**9), 16666667),
}


@pytest.mark.parametrize("rate", RATES)
def test_the_time_of_a_frame_gives_this_frame(rate):
    """However float64 computes the time of a frame, up to a day into the video."""
    tick, step = RATES[rate]
    count = int(86400 / (tick * step))
    lines = timelines((count, step), tick=float(tick))
    frames = np.unique(np.linspace(0, count - 1, 5000).astype(np.int64))
    for times in (
        frames * step * float(tick),
        frames * (step * float(tick)),
        frames / float(1 / (tick * step)),
        np.array([float(frame * step * tick) for frame in frames.tolist()]),
        (frames * step * float(tick) + 2.56) - 2.56,
    ):
        assert np.array_equal(lines.first_shown(np.array([0]), times[None])[0], frames)


@given(
    rate=st.sampled_from(list(RATES)),
    tick_number=st.integers(-(10**7), 10**9),
    part=st.sampled_from([Fraction(0), Fraction(1, 100), Fraction(1, 2), Fraction(99, 100)]),
)
def test_the_first_frame_at_or_after_a_time(rate, tick_number, part):
    """The ceiling of time / frame time, in fractions, and the same if the rate is not known to be constant."""
    tick, step = RATES[rate]
    time = (tick_number + part) * tick
    expected = min(max(math.ceil(time / (step * tick)), 0), 1000)
    shown_at = [step * frame for frame in range(1001)]
    lines = timelines((1000, step), shown_at, tick=float(tick))
    assert lines.first_shown(np.array([0, 1]), np.full((2, 1), float(time))).tolist() == [[expected], [expected]]


def test_a_variable_rate():
    """Frames at 0, 40, 100 and 110 ms, the last one until 200 ms; the first one 20 ms before the file's zero."""
    lines = timelines((7, 50), [-20, 20, 80, 90, 180])
    times = np.array([[-1, 0, 0.0001, 0.04, 0.0401, 0.1, 0.109, 0.11, 0.111, 0.199, 5]])
    assert lines.first_shown(np.array([1]), times).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4]]
    assert lines.first_shown(np.array([0]), times).tolist() == [[0, 0, 1, 1, 1, 2, 3, 3, 3, 4, 7]]
    assert lines.seconds(np.array([1, 0])).tolist() == pytest.approx([0.2, 0.35])
    assert lines.ticks(1, np.array([3, 0, 0])).tolist() == [90, -20, -20]


def test_ticks_start_at_the_first_frame():
    lines = dataclasses.replace(timelines((10, 512)), first=np.array([-1024]), offset=np.array([70]))
    assert lines.ticks(0, np.arange(4)).tolist() == [-1024, -512, 0, 512]
    assert lines.ticks(0, np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("frames", [[0, 10], [-1, 3]])
def test_frames_that_a_video_lacks_are_refused(frames):
    lines = timelines((10, 512), list(range(11)))
    for sample in (0, 1):
        with pytest.raises(ValueError, match=f"frames {frames[0]} to {frames[1]}: expected 0 to 9 for video {sample}"):
            lines.ticks(sample, np.array(frames))


def test_a_subset_keeps_each_video():
    lines = timelines((7, 50), [0, 40, 100, 110, 200], (9, 40), [5, 6, 8])
    chosen = np.array([3, 2, 1, 1])
    part = lines.subset(chosen)
    times = np.tile(np.linspace(0, 0.4, 50), (4, 1))
    assert np.array_equal(part.first_shown(np.arange(4), times), lines.first_shown(chosen, times))
    assert np.array_equal(part.seconds(np.arange(4)), lines.seconds(chosen))
    for new, old in enumerate(chosen.tolist()):
        frames = np.arange(lines.frames[old])
        assert np.array_equal(part.ticks(new, frames), lines.ticks(old, frames))
    assert part.variable.keys() == {0, 2, 3}


@given(
    slope=st.fractions(Fraction(1, 3), 100),
    offset=st.fractions(0, 1),
    count=st.integers(1, 12),
    change=st.tuples(st.integers(0, 11), st.integers(-1, 1)),
)
def test_a_rounded_constant_rate_is_recognised(slope, offset, count, change):
    """Any two times must be as far apart as some slope allows, which is less than one tick more or less."""
    values = np.array([math.floor(offset + slope * i) for i in range(count)])
    assert is_rounded_line(values)
    values[change[0] % count] += change[1]
    pairs = [(int(values[j] - values[i]), j - i) for i in range(count) for j in range(i + 1, count)]
    low = max((Fraction(rise - 1, run) for rise, run in pairs), default=Fraction(0))
    high = min((Fraction(rise + 1, run) for rise, run in pairs), default=Fraction(1))
    assert is_rounded_line(values) == (low < high)


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])
def test_an_hour_in_milliseconds(rate):
    times = np.array([int(1000 * i / rate + Fraction(1, 2)) for i in range(int(3600 * rate))])
    assert timelines([*times.tolist(), 3_600_000]).is_regular(0)
    times[len(times) // 3] += 1
    assert not timelines([*times.tolist(), 3_600_000]).is_regular(0)
    assert timelines((100, 40)).is_regular(0)
