"""Which frames of a video a clip shows: random clips for training, uniform clips for evaluation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.video.timeline import Timelines
from sce_fast.util.philox import Draw, uniforms

Sampler = Literal["random", "cvrl"]
_DRAWS = {Draw.CLIP_START: 1, Draw.CLIP_SPEED: 1, Draw.CLIP_DURATION: 1}
_DRAWS_OF_PAIR = {**_DRAWS, Draw.CLIP_DISTANCE: 2, Draw.CLIP_ORDER: 1}


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """The clips of a video: how many frames they have, how long they are, and where they start.

    A clip covers all frames shown in its time and takes `frames` of them, evenly from the first to the last. A video
    shorter than a clip is one clip, from its start to its end. If a clip covers too few frames, they repeat.
    """

    frames: int = 8
    """Number of frames of a clip."""
    seconds: float | None = 2.56
    """Time that a clip covers. Give either this or `stride`."""
    stride: int | None = None
    """Distance between the frames of a clip, in frames of the video."""
    sampler: Sampler = "random"
    """Where clips start. `random`: anywhere, each view on its own. `cvrl`: views 0 and 1, 2 and 3, … are pairs of
    clips of the same length. The distance t of their starts has the density P(t) ∝ 1 − (t/T)^cvrl_power over [0, T],
    where T is the distance of the first and the last possible start (Qian et al., CVPR 2021). The pair lies anywhere
    in the video, and either view may come first."""
    cvrl_power: float = 1.0
    """Exponent of `cvrl`. Higher values prefer more distant clips. The published 1 is the distribution of `random`."""
    speeds: tuple[float, ...] = (1.0,)
    """Factors by which a clip covers more time. Each clip draws one of them."""
    duration_jitter: float = 0.0
    """Half width of the range around 1 from which a further factor of the covered time is drawn."""
    temporal_difference: float = 0.0
    """Probability that a clip shows differences between consecutive frames of the video instead of its frames."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"frames={self.frames}: expected at least 1 frame")
        if (self.seconds is None) == (self.stride is None):
            raise ValueError(f"seconds={self.seconds}, stride={self.stride}: expected one of them, the other None")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds={self.seconds}: expected a positive time")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride={self.stride}: expected at least 1 frame")
        if self.sampler not in get_args(Sampler):
            raise ValueError(f"sampler={self.sampler!r}: expected one of {', '.join(get_args(Sampler))}")
        if not 0 < self.cvrl_power < math.inf:
            raise ValueError(f"cvrl_power={self.cvrl_power}: expected a positive exponent")
        if not self.speeds or not all(0 < speed < math.inf for speed in self.speeds):
            raise ValueError(f"speeds={self.speeds}: expected one or more positive factors")
        if not 0 <= self.duration_jitter < 1:
            raise ValueError(f"duration_jitter={self.duration_jitter}: expected 0 <= duration_jitter < 1")
        if not 0 <= self.temporal_difference <= 1:
            raise ValueError(f"temporal_difference={self.temporal_difference}: expected a probability in [0, 1]")


@dataclass(frozen=True)
class Spans:
    """Runs of consecutive frames that clips cover."""

    first: NDArray[np.int64]  # number of the first frame
    count: NDArray[np.int64]  # number of frames, at least 1

    def evenly(self, frames: int) -> NDArray[np.int64]:
        """Return the numbers (…, frames) of evenly spaced frames: first + floor(linspace(0, count − 1, frames))."""
        steps = (self.count - 1)[..., None] * np.arange(frames) // max(frames - 1, 1)
        return self.first[..., None] + steps


def random_spans(
    sampling: ClipSampling,
    timelines: Timelines,
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    views: NDArray[np.int64],
) -> Spans:
    """Draw the frames (N,) that clips cover.

    Args:
        samples: (N,) numbers of the videos.
        views: (N,) numbers of the views.

    Raises:
        ValueError: a video has no frames.
    """
    _require_frames(timelines, samples)
    if sampling.sampler == "cvrl":
        random = uniforms(seed, epoch, samples, _DRAWS_OF_PAIR, views - views % 2)
        places = _places_in_pairs(sampling.cvrl_power, random, views)
    else:
        random = uniforms(seed, epoch, samples, _DRAWS, views)
        places = random[Draw.CLIP_START]
    speeds = np.array(sampling.speeds)[(random[Draw.CLIP_SPEED] * len(sampling.speeds)).astype(np.int64)]
    factors = speeds * (1 + sampling.duration_jitter * (2 * random[Draw.CLIP_DURATION] - 1))
    if sampling.seconds is not None:
        covered = sampling.seconds * factors
        starts = places * np.maximum(timelines.seconds(samples) - covered, 0)
        spans = _spans_shown(timelines, samples, starts[:, None], covered[:, None])
        return Spans(spans.first[:, 0], spans.count[:, 0])
    counts = np.minimum(_frames_covered(sampling, factors), timelines.frames[samples])
    room = timelines.frames[samples] - counts
    return Spans(np.minimum((places * (room + 1)).astype(np.int64), room), counts)


def _places_in_pairs(
    power: float, random: Mapping[Draw, NDArray[np.float64]], views: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return where each clip (N,) of a pair starts: 0 is the first possible start, 1 the last."""
    # U · V^(1/(power + 1)) of independent U and V has a density ∝ 1 − distance^power.
    distances = random[Draw.CLIP_DISTANCE][:, 0] * random[Draw.CLIP_DISTANCE][:, 1] ** (1 / (power + 1))
    is_later = (random[Draw.CLIP_ORDER] < 0.5) == (views % 2 == 0)
    return random[Draw.CLIP_START] * (1 - distances) + is_later * distances


def uniform_clips(
    sampling: ClipSampling, timelines: Timelines, samples: NDArray[np.int64], clips: int
) -> NDArray[np.int64]:
    """Return the frames (N, clips, F) of clips whose starts are equally spaced from the first to the last possible one.

    A single clip lies in the middle. Speeds, jitter and temporal differences are left out.

    Raises:
        ValueError: a video has no frames, or clips < 1.
    """
    if clips < 1:
        raise ValueError(f"clips={clips}: expected at least 1 clip")
    _require_frames(timelines, samples)
    numbers, parts = (np.arange(clips), clips - 1) if clips > 1 else (np.array([1]), 2)
    if sampling.seconds is not None:
        room = np.maximum(timelines.seconds(samples) - sampling.seconds, 0)[:, None]
        spans = _spans_shown(timelines, samples, room * numbers / parts, np.array(sampling.seconds))
    else:
        counts = np.minimum(_frames_covered(sampling, np.array(1.0)), timelines.frames[samples])[:, None]
        room_in_frames = timelines.frames[samples][:, None] - counts
        first = room_in_frames * numbers // parts
        spans = Spans(first, np.broadcast_to(counts, first.shape))
    return spans.evenly(sampling.frames)


def _require_frames(timelines: Timelines, samples: NDArray[np.int64]) -> None:
    frames = timelines.frames[samples]
    if not frames.all():
        raise ValueError(f"video {samples[frames.argmin()]} has no frames: expected samples that are not bad")


def _frames_covered(sampling: ClipSampling, factors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of frames from a clip's first to its last, for frames that lie a stride apart."""
    assert sampling.stride is not None
    return np.rint((sampling.frames - 1) * sampling.stride * factors).astype(np.int64) + 1


def _spans_shown(
    timelines: Timelines, samples: NDArray[np.int64], starts: NDArray[np.float64], seconds: NDArray[np.float64]
) -> Spans:
    """Return the frames (N, M) shown in [start, start + seconds) for starts (N, M).

    If no frame is shown anew in this time, the span is the frame that is on display.
    """
    shown = timelines.first_shown(samples, np.concatenate([starts, starts + seconds], axis=1))
    first, end = shown[:, : starts.shape[1]], shown[:, starts.shape[1] :]
    count = end - first
    return Spans(np.where(count > 0, first, np.maximum(first - 1, 0)), np.maximum(count, 1))
