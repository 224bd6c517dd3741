"""The persons that a detector is tested on: each rank has its own share of their key frames."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.network import Detector, DetectorInputs
from sce_fast.evaluate.parts import together
from sce_fast.evaluate.supervised.batches import share_of
from sce_fast.evaluate.supervised.training import SHORT_TEST
from sce_fast.train.stop import StopRequest
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
        self.test_persons = len(self.test.of_frames(self._share)[0])  # of this rank

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
    scores = torch.empty(len(detector.learners), tests.test_persons, detector.classes)
    silent = not ranks.is_first
    with progress_bar(tests.test_samples, "Testing", unit="clip", silent=silent, delay=SHORT_TEST) as bar:
        bar.leave = False
        return of_all_ranks(detector.scores, tests.tests(), scores, ranks=ranks, progress=bar.update).numpy()


def of_all_ranks(
    compute: Callable[[DetectorInputs], Tensor],
    batches: Iterable[DetectorInputs],
    own: Tensor,
    *,
    ranks: Ranks,
    progress: Callable[[int], object],
    request: StopRequest | None = None,
) -> Tensor:
    """Return what is computed of all ranks' persons, (…, n, F) on the CPU of every rank; every rank has to call it.

    Args:
        compute: returns a row (…, n, F) for each person of a batch.
        batches: of this rank.
        own: (…, n, F) on the CPU, with a row for each person of this rank, to be filled.
        ranks: in the order of their persons.
        progress: called with the number of clips of each batch.
        request: open; stops all ranks. See together.

    Raises:
        BadFilesError: a rank cannot decode a file; all ranks raise it.
        Stopped: a rank was asked to stop; all ranks raise it.
    """

    def filled() -> Tensor:
        done = 0
        for batch in batches:
            rows = compute(batch)
            own[..., done : done + rows.shape[-2], :] = rows
            done += rows.shape[-2]
            progress(len(batch))
        return own

    rows = together(filled, ranks, request)
    if ranks.size == 1:
        return rows
    counts: list[int] = ranks.gather(rows.shape[-2])
    padded = pad(rows, (0, 0, 0, max(counts) - rows.shape[-2]))
    gathered = zip(ranks.gather_tensors(padded), counts, strict=True)
    return torch.cat([part[..., :count, :] for part, count in gathered], dim=-2)
