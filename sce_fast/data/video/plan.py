"""All random decisions about a video's clips, as a pure function of (seed, epoch, sample, view)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.plan import ViewPlan, plan_views
from sce_fast.data.video.clips import ClipSampling, Spans, random_spans
from sce_fast.data.video.timeline import Timelines
from sce_fast.util.philox import Draw, uniform


@dataclass(frozen=True)
class ClipPlan:
    """The frames of one view's clip of each of N videos, and the operations that all frames of a clip share."""

    frames: NDArray[np.int64]  # (N, F) numbers in order of time; repeated where a clip covers fewer frames
    neighbours: NDArray[np.int64]  # (N, F) frame to subtract from each; the same frame without temporal difference
    difference: NDArray[np.bool_]  # (N,) whether the clip shows temporal differences
    view: ViewPlan  # boxes are in pixels of the decoded frames


def plan_clips(
    sampling: ClipSampling,
    augmentations: tuple[Augmentation, ...],
    timelines: Timelines,
    sizes: NDArray[np.int32],
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
) -> tuple[ClipPlan, ...]:
    """Draw the plan of one clip of these samples for each augmentation.

    Args:
        timelines: of all videos of the index.
        sizes: (N, 2) height and width of the decoded frames of each of these samples, as plan_views takes them.
        samples: (N,) numbers of the videos in the index.

    Raises:
        ValueError: a video has no frames, or there are not as many sizes as samples.
    """
    if len(sizes) != len(samples):
        raise ValueError(f"sizes has {len(sizes)} rows: expected one for each of the {len(samples)} samples")
    count, views = len(samples), len(augmentations)
    rows = dict(samples=np.tile(samples, views), views=np.repeat(np.arange(views), count))  # all views in one go
    spans = random_spans(sampling, timelines, seed=seed, epoch=epoch, **rows)
    difference = np.zeros(views * count, dtype=np.bool_)
    if sampling.temporal_difference > 0:
        chances = uniform(seed, epoch, rows["samples"], Draw.TEMPORAL_DIFFERENCE, rows["views"])
        difference = chances < sampling.temporal_difference
    frames, neighbours = _with_neighbours(spans, sampling.frames, difference)
    planned = plan_views(augmentations, sizes, seed=seed, epoch=epoch, samples=samples)
    plans = []
    for view in range(views):
        own = slice(view * count, (view + 1) * count)
        plans.append(ClipPlan(frames[own], neighbours[own], difference[own], planned[view]))
    return tuple(plans)


def _with_neighbours(
    spans: Spans, count: int, difference: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return frames (N, F), and the frame (N, F) to subtract from each: the next one of the video.

    As published, the difference of a clip's last frame repeats the difference before it: the clip ends there.
    """
    frames = spans.evenly(count)
    last = spans.first + spans.count - 1
    last_pair = np.maximum(last - 1, spans.first)
    frames = np.where(difference[:, None], np.minimum(frames, last_pair[:, None]), frames)
    neighbours = np.where(difference[:, None], np.minimum(frames + 1, last[:, None]), frames)
    return frames, neighbours
