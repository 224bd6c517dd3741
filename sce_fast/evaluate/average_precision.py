"""Average precision of a ranking by scores, in the two forms of PASCAL VOC."""

import numpy as np
from numpy.typing import NDArray


def eleven_point_precision(relevant: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    """Return the 11-point average precision of VOC2007: the mean of the interpolated precision at recall 0, 0.1, …, 1.

    The interpolated precision at a recall is the highest precision at this or a higher recall. Rows with equal scores
    enter the ranking together.

    Args:
        relevant: (n,) whether each row is an example of the class.
        scores: (n,) scores, the highest first in the ranking.

    Raises:
        ValueError: shapes differ, no row is relevant, or a score is not finite.

    Example:
        >>> eleven_point_precision(np.array([True, False]), np.array([0.9, 0.1]))
        1.0
    """
    precision, recall = _interpolated(relevant, scores)
    # The first rank whose recall reaches the level. Levels such as 0.3 are rounded, and so is a recall of 3 / 10.
    ranks = np.searchsorted(recall, np.linspace(0, 1, 11) - 1e-9)
    return float(precision[ranks].mean())


def interpolated_precision(
    relevant: NDArray[np.bool_], scores: NDArray[np.floating], *, total: int | None = None
) -> float:
    """Return the area under the interpolated precision-recall curve, the average precision of VOC from 2010 on.

    Args:
        relevant, scores: see eleven_point_precision.
        total: number of examples of the class if the ranking may lack some, as a detector does; none of the rows needs
            to be relevant then.

    Raises:
        ValueError: see eleven_point_precision.

    Example:
        >>> interpolated_precision(np.array([True, False, True]), np.array([0.9, 0.5, 0.1]))  # (1 + 2 / 3) / 2
        0.8333333333333333
    """
    if total is not None and not relevant.any():
        return 0.0
    precision, recall = _interpolated(relevant, scores, total)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _interpolated(
    relevant: NDArray[np.bool_], scores: NDArray[np.floating], total: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return interpolated precision and recall after each group of equal scores, from the highest score on."""
    if relevant.shape != scores.shape or relevant.ndim != 1:
        raise ValueError(f"relevant has the shape {relevant.shape}, scores {scores.shape}: expected (n,) for both")
    if not relevant.any():
        raise ValueError(f"none of {len(relevant)} rows is relevant: the average precision needs at least one")
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {len(scores)} scores are not finite")
    order = np.argsort(-scores, kind="stable")
    last_of_group = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(relevant[order])[last_of_group]
    precision = found / (np.flatnonzero(last_of_group) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1], found / (relevant.sum() if total is None else total)
