"""The persons that a detector is tested on: each rank has its own share of their key frames."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sce_fast.data.faults import BadFilesError
from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.network import Detector, DetectorInputs
from sce_fast.evaluate.supervised.batches import share_of
from sce_fast.evaluate.supervised.training import SHORT_TEST
from sce_fast.util.terminal import progress_bar


class ShownPersons(Protocol):
    """Persons with what a detector takes of them: clips, or their features."""

    @property
    def persons(self) -> Persons:
        """Boxes and actions."""

    def of(self, frames: NDArray[np.int64]) -> Iterator[DetectorInputs]:
        """Yield the persons in key frames (N,), batch by batch and in their order."""


class PersonTests:
    """The test side of batches: this rank's share of the key frames.

    Args:
        shown: persons of all ranks.
        ranks: that share the key frames.
    """

    def __init__(self, shown: ShownPersons, ranks: Ranks) -> None:
        self._shown, self.test = shown, shown.persons
        self._share = share_of(len(self.test.frames), ranks)
        self.test_samples = len(self._share)

    def tests(self) -> Iterator[DetectorInputs]:
        """Yield this rank's test persons, batch by batch.

        Raises:
            BadFilesError: a file cannot be decoded; the message names it.
        """
        return self._shown.of(self._share)


def person_scores(detector: Detector, tests: PersonTests, ranks: Ranks) -> NDArray[np.float32]:
    """Return the probability (heads, n, A) of each action of each test person of all ranks; every rank has to call it.

    Raises:
        BadFilesError: a rank cannot decode a file; all ranks raise it.
    """
    none = torch.zeros(len(detector.learners), 0, detector.classes)
    more: dict[str, Any] = {"title": "Testing", "delay": SHORT_TEST, "leave": False}
    return of_all_ranks(detector.scores, tests.tests(), none, clips=tests.test_samples, ranks=ranks, **more).numpy()


def of_all_ranks(
    compute: Callable[[DetectorInputs], Tensor],
    batches: Iterable[DetectorInputs],
    none: Tensor,
    *,
    clips: int,
    ranks: Ranks,
    title: str,
    delay: float = 0.0,
    leave: bool = True,
) -> Tensor:
    """Return what is computed of all ranks' persons, (…, n, F) on the CPU of every rank; every rank has to call it.

    Args:
        compute: returns a row (…, n, F) for each person of a batch.
        batches: of this rank.
        none: (…, 0, F), the result of no person; it gives the dtype.
        clips: of this rank, for the progress bar.
        ranks: in the order of their persons.
        title, delay, leave: of the progress bar.

    Raises:
        BadFilesError: a rank cannot decode a file; all ranks raise it.
    """
    own, failure = [none], None
    with progress_bar(clips, title, unit="clip", silent=not ranks.is_first, delay=delay) as bar:
        bar.leave = leave
        try:
            for batch in batches:
                own.append(compute(batch).to("cpu", none.dtype))
                bar.update(len(batch))
        except BadFilesError as error:  # the other ranks wait
            failure = str(error)
    failures = [found for found in ranks.gather(failure) if found is not None]
    if failures:
        raise BadFilesError(failures[0])
    rows = torch.cat(own, dim=-2)
    counts: list[int] = ranks.gather(rows.shape[-2])
    padded = pad(rows, (0, 0, 0, max(counts) - rows.shape[-2]))
    gathered = zip(ranks.gather_tensors(padded), counts, strict=True)
    return torch.cat([part[..., :count, :] for part, count in gathered], dim=-2)
