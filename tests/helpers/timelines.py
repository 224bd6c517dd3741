"""Timelines written by hand."""

from collections.abc import Sequence

import numpy as np

from sce_fast.data.video.timeline import Timelines


def timelines(*videos: tuple[int, int] | Sequence[int], tick: float | Sequence[float] = 0.001) -> Timelines:
    """Return the timelines of videos, each described by its times.

    Args:
        videos: (number of frames, ticks between two frames) of a constant rate, or a list of at least three ticks: when
            each frame is shown, and the end of the last frame.
        tick: seconds of a tick, of all videos or of each.
    """
    constant = [v if isinstance(v, tuple) else (len(v) - 1, 0) for v in videos]
    frames, step = (np.array(column, dtype=np.int64) for column in zip(*constant, strict=True))
    variable = {i: np.array(v[:-1]) - v[0] for i, v in enumerate(videos) if not isinstance(v, tuple)}
    return Timelines(
        frames=frames,
        offset=np.zeros_like(frames),
        tick=np.broadcast_to(np.array(tick, dtype=np.float64), frames.shape),
        first=np.array([0 if isinstance(v, tuple) else v[0] for v in videos]),
        step=step,
        duration=np.array([v[0] * v[1] if isinstance(v, tuple) else v[-1] - v[0] for v in videos]),
        variable=variable,
    )
