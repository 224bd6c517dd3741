"""What follows from the size of a batch: the rows of a rank, and learning rates."""

import math
from typing import Literal

from sce_fast.util.settings import require

Scaling = Literal["linear", "sqrt", "none"]


def rank_batch(batch_size: int, *, ranks: int, accumulation: int) -> int:
    """Return the number of samples that pass through the networks of one rank at a time.

    Args:
        batch_size: samples per optimizer step, over all ranks.
        ranks: that share the batch.
        accumulation: parts into which a rank's share is split.

    Raises:
        ValueError: the batch cannot be divided into ranks · accumulation equal parts.

    Example:
        >>> rank_batch(512, ranks=8, accumulation=2)
        32
    """
    parts = ranks * accumulation
    expected = f"a multiple of ranks={ranks} · accumulation={accumulation}"
    require(batch_size % parts == 0, "batch_size", batch_size, expected)
    return batch_size // parts


def scaled_rate(rate: float, batch_size: int, scaling: Scaling) -> float:
    """Return a learning rate that is given for a batch of 256 as the rate for another batch.

    Example:
        >>> scaled_rate(0.1, 1024, "linear")
        0.4
    """
    factor = {"linear": batch_size / 256, "sqrt": math.sqrt(batch_size / 256), "none": 1.0}[scaling]
    return rate * factor
