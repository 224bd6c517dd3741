"""The samples of each rank and step, as a pure function of seed, epoch and step."""

import numpy as np
from numpy.typing import NDArray

from sce_fast.util.philox import Draw, permutation, uniform


def epoch_order(seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """Return a random permutation of range(samples)."""
    return permutation(seed, epoch, samples, Draw.ORDER)


def batch_of_rank(
    order: NDArray[np.int64], step: int, batch_size: int, rank: int = 0, ranks: int = 1
) -> NDArray[np.int64]:
    """Return the samples (batch_size,) of this rank: a contiguous slice of the step's ranks · batch_size samples."""
    start = (step * ranks + rank) * batch_size
    return order[start : start + batch_size]


def replace_bad(samples: NDArray[np.int64], bad: NDArray[np.bool_], *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return samples (N,) with bad samples replaced by others of the data set.

    The replacement is a function of seed, epoch, sample and attempt. The order, other samples and other ranks do not
    change.

    Args:
        bad: (n,) whether each sample of the data set is bad.
    """
    replaced = samples.copy()
    attempt = 0
    while len(still_bad := np.flatnonzero(bad[replaced])):
        numbers = uniform(seed, epoch, samples[still_bad], Draw.REPLACEMENT, view=attempt)
        replaced[still_bad] = (numbers * len(bad)).astype(np.int64)
        attempt += 1
    return replaced
