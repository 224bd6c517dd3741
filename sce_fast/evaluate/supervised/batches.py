"""Labelled batches to train a classifier on, and the samples to test it on: read by a loader, or features in memory."""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import BadFilesError, evaluation_refusal
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.data.kinds import evaluation_inputs
from sce_fast.data.loader import Batch, TrainingLoader, Views
from sce_fast.data.order import batch_of_rank, epoch_order
from sce_fast.distributed import Ranks
from sce_fast.evaluate.supervised.settings import SupervisedSettings


class LabelledBatches(Protocol):
    """Training batches without end, and one pass over the test samples. Each rank has its own share of both."""

    kind: str  # of the samples: "images", "videos" or "clips"
    test_samples: int  # of this rank

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""

    def __next__(self) -> tuple[Any, Tensor]:
        """Return the next inputs and their targets; for a Classifier (N, …) and labels (N,)."""

    def tests(self) -> Iterator[Any]:
        """Yield this rank's test samples in batches; for a Classifier views (N, views, …) and labels (N,)."""

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have come next."""

    def close(self) -> None:
        """Stop to read ahead."""


class LoaderBatches:
    """Training batches that a loader reads ahead. A subclass makes inputs and targets of each.

    Args:
        train: samples to train on.
        views: one random view of them; RandomViews for images, RandomClips for videos.
        settings: batch size and accumulation.
        ranks: that share each batch.

    Raises:
        ValueError: the train set is smaller than a global batch, which may not be divisible among the ranks.
    """

    def __init__(self, train: Index, views: Views, settings: SupervisedSettings, ranks: Ranks) -> None:
        self.ranks, self._train_index = ranks, train
        self._loader = TrainingLoader(
            train,
            views,
            batch_size=settings.rank_batch(ranks.size),
            batches_per_step=settings.accumulation,
            rank=ranks.rank,
            ranks=ranks.size,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self._loader.steps_per_epoch

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have come next."""
        self._loader.load_state_dict(state)

    def close(self) -> None:
        """Stop to read ahead."""
        self._loader.close()

    def _batch(self) -> Batch:
        """Return the next batch.

        Raises:
            BadFilesError: a file cannot be decoded; the message names it.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*\nOther .* replace them", UserWarning)  # here, none replaces them
            batch = next(self._loader)
        if bad := self._loader.bad_files:
            raise BadFilesError(evaluation_refusal(bad, len(self._train_index), self._train_index.kind))
        return batch


class LoadedBatches(LoaderBatches):
    """Random views of a train set's samples, and the deterministic views of a test set's.

    Images and videos are the same here: their views decide what a sample looks like.

    Args:
        train, views, settings, ranks: see LoaderBatches; the train samples are labelled.
        test: labelled samples to test on, with the train set's class numbers.
        view: of a test sample.
        test_batch_size: samples at a time when testing.
        threads: number of threads that decode.

    Raises:
        ValueError: the train set is smaller than a global batch, which may not be divisible among the ranks.
        BadFilesError: from a batch on, a file cannot be decoded; the message names it.
    """

    def __init__(
        self,
        train: Index,
        views: Views,
        test: Index,
        view: EvaluationView,
        settings: SupervisedSettings,
        *,
        test_batch_size: int = 256,
        threads: int = 2,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(train, views, settings, ranks or Ranks())
        self.kind = train.kind
        self._test, self._view = test.subset(share_of(len(test), self.ranks)), view
        self.test_samples = len(self._test)
        self._settings: dict[str, Any] = {"batch_size": test_batch_size, "threads": threads, "device": views.device}

    def __next__(self) -> tuple[Tensor, Tensor]:
        batch = self._batch()
        assert self._train_index.labels is not None
        return batch.views[0], torch.from_numpy(self._train_index.labels[batch.samples])

    def tests(self) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._test.labels is not None
        labels, done = torch.from_numpy(self._test.labels), 0
        for inputs in evaluation_inputs(self._test, self._view, **self._settings):
            yield inputs, labels[done : done + len(inputs)]
            done += len(inputs)


class StoredOrder:
    """The train samples of each batch, in the order of a TrainingLoader with the same seed.

    Args:
        samples: number of train samples.
        batch_size: N of this rank.
        batches_per_step: batches of one optimizer step.
        seed: of the order, in [0, 2³²).
        ranks: that share each batch.
        what: the samples, for the message.

    Raises:
        ValueError: there are fewer samples than in a global batch.
    """

    def __init__(
        self,
        samples: int,
        *,
        batch_size: int,
        batches_per_step: int = 1,
        seed: int = 0,
        ranks: Ranks | None = None,
        what: str = "train features",
    ) -> None:
        self._ranks, self._samples, self._batch_size, self._seed = ranks or Ranks(), samples, batch_size, seed
        whole = batch_size * batches_per_step * self._ranks.size
        if whole > samples:
            raise ValueError(f"batch_size={whole} is larger than the {samples} {what}")
        self.steps_per_epoch = samples // whole * batches_per_step
        self._epoch, self._step = 0, 0
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))  # epoch, its order

    def __next__(self) -> NDArray[np.int64]:
        """Return the samples (N,) of this rank's next batch."""
        if self._order[0] != self._epoch:
            self._order = self._epoch, epoch_order(self._seed, self._epoch, self._samples)
        share = (self._batch_size, self._ranks.rank, self._ranks.size)
        rows = batch_of_rank(self._order[1], self._step, *share)
        self._step = (self._step + 1) % self.steps_per_epoch
        self._epoch += self._step == 0
        return rows

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have come next."""
        self._epoch, self._step = state["epoch"], state["step"]


def stored_order(samples: int, settings: SupervisedSettings, ranks: Ranks, what: str = "train features") -> StoredOrder:
    """Return the order of stored train samples by the settings of an evaluation; `what` are the samples, for messages.

    Raises:
        ValueError: the batch is larger than the number of samples, or cannot be shared among the ranks.
    """
    return StoredOrder(
        samples,
        batch_size=settings.rank_batch(ranks.size),
        batches_per_step=settings.accumulation,
        seed=settings.seed,
        ranks=ranks,
        what=what,
    )


class StoredBatches:
    """Features that are the same in every epoch, as those of samples without augmentation are.

    The order of the rows is that of a TrainingLoader with the same seed.

    Args:
        train, train_labels: (n, F) and (n,).
        test, test_labels: (m, F) and (m,).
        batch_size: N of this rank.
        batches_per_step: batches of one optimizer step.
        test_batch_size: rows at a time when testing.
        seed: of the order, in [0, 2³²).
        ranks: that share each batch, and the test rows.
        kind: of the samples: "images" or "videos".

    Raises:
        ValueError: there are fewer train rows than in a global batch.
    """

    def __init__(
        self,
        train: Tensor,
        train_labels: Tensor,
        test: Tensor,
        test_labels: Tensor,
        *,
        batch_size: int,
        batches_per_step: int = 1,
        test_batch_size: int = 4096,
        seed: int = 0,
        ranks: Ranks | None = None,
        kind: str = "images",
    ) -> None:
        ranks, self.kind = ranks or Ranks(), kind
        self._order = StoredOrder(
            len(train), batch_size=batch_size, batches_per_step=batches_per_step, seed=seed, ranks=ranks
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        rows = share_of(len(test), ranks)
        own = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0)  # a slice holds no row twice
        self._train, self._test = (train, train_labels), (test[own], test_labels[own])
        self.test_samples, self._test_batch_size = len(rows), test_batch_size

    def __next__(self) -> tuple[Tensor, Tensor]:
        features, labels = self._train
        rows = torch.from_numpy(next(self._order))
        return features[rows], labels[rows]

    def tests(self) -> Iterator[tuple[Tensor, Tensor]]:
        features, labels = (tensor.split(self._test_batch_size) for tensor in self._test)
        for some, own in zip(features, labels, strict=True):
            if len(some):
                yield some[:, None], own

    def state_dict(self) -> dict[str, int]:
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._order.load_state_dict(state)

    def close(self) -> None:
        """Nothing is read ahead."""


def share_of(samples: int, ranks: Ranks) -> NDArray[np.int64]:
    """Return the numbers of the samples that this rank tests: a contiguous part of range(samples)."""
    return np.array_split(np.arange(samples, dtype=np.int64), ranks.size)[ranks.rank]
