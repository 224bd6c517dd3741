"""The steps since the last line of the log: means of what they measured, and the time that they took."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor


@dataclass
class Totals:
    """Sums over the steps of an interval on one rank, as JSON holds them exactly."""

    steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0  # of these, spent waiting for the loader
    sums: dict[str, list[float]] = field(default_factory=dict)  # measure → its sum, number of steps that have it


class Interval:
    """Adds up steps. Measures are summed on their device; the host waits only where it reads `totals`.

    A step in which a measure is NaN does not count for its mean, such as the gradient norm of a step that float16 has
    skipped. (The guard stops the run before a loss of NaN is logged.)

    Args:
        totals: of the steps so far, if the interval is resumed.

    Example:
        >>> interval = Interval()
        >>> interval.add(training_step([views], number=0, learning_rate=0.1, momentum=0.99))
        >>> means([interval.totals()])["loss"]
        5.37
    """

    def __init__(self, totals: Totals | None = None) -> None:
        totals = totals or Totals()
        self.steps, self.seconds, self.data_seconds = totals.steps, totals.seconds, totals.data_seconds
        self._names = list(totals.sums)
        self._sums = torch.tensor(list(totals.sums.values()), dtype=torch.float64)  # (measures, 2)

    def add(self, measures: dict[str, Tensor]) -> None:
        """Add the measures of one step, () tensors."""
        self.steps += 1
        values = torch.stack(list(measures.values())).double()
        known = ~values.isnan()
        step = torch.stack([torch.where(known, values, 0), known.double()], dim=1)
        self._sums = self._sums.to(step.device) + step if self._names else step
        self._names = list(measures)

    def totals(self) -> Totals:
        """Return the sums, for which the host waits."""
        sums = dict(zip(self._names, self._sums.tolist(), strict=True))
        return Totals(self.steps, self.seconds, self.data_seconds, sums)


def means(ranks: Sequence[Totals]) -> dict[str, float | None]:
    """Return the mean of each measure over the steps of all ranks, or None if no step has it."""
    found: dict[str, float | None] = {}
    for name in ranks[0].sums:
        total, steps = (sum(numbers) for numbers in zip(*(rank.sums[name] for rank in ranks), strict=True))
        found[name] = total / steps if steps else None
    return found


def wait_share(ranks: Sequence[Totals]) -> float:
    """Return the share of the time that the ranks spent waiting for their loaders."""
    return sum(rank.data_seconds for rank in ranks) / max(sum(rank.seconds for rank in ranks), 1e-9)


def of_rank(saved: Sequence[Totals], rank: int, ranks: int) -> Totals:
    """Return what a rank goes on from; if the number of ranks has changed, the average of those that saved."""
    if len(saved) == ranks:
        return saved[rank]
    sums = {
        name: [sum(numbers) / len(saved) for numbers in zip(*(totals.sums[name] for totals in saved), strict=True)]
        for name in saved[0].sums
    }
    return Totals(**{**asdict(saved[0]), "sums": sums})
