"""Persons whose features are in memory: to test on, and to train on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.distributed import Ranks
from sce_fast.evaluate.detection.annotations import Persons
from sce_fast.evaluate.detection.clips import PersonBatches
from sce_fast.evaluate.detection.network import PersonRows, numbers_in_batch
from sce_fast.evaluate.detection.testing import PersonTests
from sce_fast.evaluate.supervised.batches import stored_order
from sce_fast.evaluate.supervised.settings import SupervisedSettings

TEST_FRAMES = 1024  # at a time


@dataclass(frozen=True)
class StoredPersons:
    """Persons with their features."""

    persons: Persons
    features: Tensor  # (n, F)

    def of(self, frames: NDArray[np.int64]) -> Iterator[PersonRows]:
        """Yield the persons in key frames (N,), batch by batch and in their order."""
        for start in range(0, len(frames), TEST_FRAMES):
            some = frames[start : start + TEST_FRAMES]
            persons, _, places = self.persons.of_frames(some)
            yield PersonRows(self.features[torch.from_numpy(persons)], places, len(some))


class StoredPersonBatches(PersonTests):
    """Batches of features of persons, the same in every epoch. Their order is that of PersonBatches with the same seed.

    Args:
        train: persons to train on.
        test: persons to score.
        settings: batch size, counted in key frames, and seed.
        ranks: that share each batch, and the test key frames.

    Raises:
        ValueError: the batch is larger than the number of train key frames, or cannot be shared among the ranks.
    """

    kind = "clips"

    def __init__(
        self, train: StoredPersons, test: StoredPersons, settings: SupervisedSettings, ranks: Ranks | None = None
    ) -> None:
        self._ranks = ranks or Ranks()
        super().__init__(test, self._ranks)
        self._train, self._features = train.persons, train.features
        self._order = stored_order(len(train.persons.frames), settings, self._ranks, "train key frames")
        self.steps_per_epoch = self._order.steps_per_epoch

    def __next__(self) -> tuple[PersonRows, Tensor]:
        """Return the features of the persons in the next key frames, and their actions (n, A)."""
        frames = next(self._order)
        persons, rows, places = self._train.of_frames(frames)
        numbers = numbers_in_batch(rows, places, len(frames), self._ranks)
        some = PersonRows(self._features[torch.from_numpy(persons)], numbers, len(frames))
        return some, torch.from_numpy(self._train.actions[persons])

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have come next."""
        self._order.load_state_dict(state)

    def close(self) -> None:
        """Nothing is read ahead."""


AnyPersonBatches = PersonBatches | StoredPersonBatches
