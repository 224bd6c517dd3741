"""Training batches as torch tensors, and the position from which an interrupted run resumes."""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import describe_bad_files, require_few_bad
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.views import RandomViews
from sce_fast.data.index import ImageIndex
from sce_fast.data.order import batch_of_rank, epoch_order, replace_bad
from sce_fast.data.pipeline import Feed, next_outputs


@dataclass(frozen=True)
class Batch:
    """One batch of one rank."""

    views: list[Tensor]  # V tensors (N, 3, size, size) float32, normalised
    samples: NDArray[np.int64]  # (N,) their numbers in the index, with replacements in place of bad files
    epoch: int
    step: int  # in the epoch


class TrainingLoader:
    """An endless iterator over training batches, epoch after epoch.

    The global batch and its pixels depend only on seed, epoch and step. They do not depend on the number of ranks or
    threads, or on interruptions. The last incomplete batch of an epoch is dropped.

    A file that cannot be read or decoded causes a warning, is recorded with its reason in `bad_files`, and is replaced
    by another image of the data set. The replacement does not depend on when, or by which rank, the file is found.
    Bad files are therefore neither saved nor sent to other ranks. A file whose decoded size has changed since it was
    listed is bad if the planned crop lies outside.

    Args:
        index: the images.
        augmentations: one for each view.
        batch_size: N of this rank.
        batches_per_step: batches of one optimizer step; an epoch ends with a complete step.
        seed: in [0, 2³²).
        background: colour behind transparent images, as background_color takes it; "none" drops their alpha.
        rank, ranks: this rank takes slice `rank` of `ranks` contiguous slices of each global batch.
        threads: number of threads that decode and augment.
        device: "cpu", or "gpu" for the current CUDA device.

    Raises:
        ValueError: the data set is smaller than a global batch, or an argument is out of range.
        RuntimeError: more than MAX_BAD_SHARE of the files are bad, at the start or later; the message counts and
            names them.

    Example:
        >>> loader = TrainingLoader(index_images("photos"), (Augmentation(), Augmentation()), batch_size=64, seed=0)
        >>> batch = next(loader)
        >>> saved = loader.state_dict()   # a loader that loads it continues with the next batch
    """

    def __init__(
        self,
        index: ImageIndex,
        augmentations: tuple[Augmentation, ...],
        *,
        batch_size: int,
        seed: int,
        background: str = "black",
        batches_per_step: int = 1,
        rank: int = 0,
        ranks: int = 1,
        threads: int = 2,
        device: str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank={rank}: expected 0 to {ranks - 1}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: expected 0 to 2**32 - 1")
        if len(index) < batch_size * batches_per_step * ranks:
            raise ValueError(
                f"batch_size={batch_size * batches_per_step} on {ranks} rank(s) is larger than the data set of "
                f"{len(index)} images in {index.listing.title}"
            )
        self.index = index
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_step = batches_per_step
        self.rank, self.ranks = rank, ranks
        self.device = device
        self.epoch, self.step = 0, 0
        self.bad_files: dict[str, str] = {}  # path → reason, as far as this rank has found them
        self._bad: dict[int, str] = {}
        self._is_bad = np.zeros(len(index), dtype=np.bool_)
        self._retried: tuple[int, int] | None = None  # position of a batch that failed without a bad file
        if index.bad:
            self._mark_bad(index.bad)
        if rank == 0 and (known := index.bad_files()):  # the other ranks have the same index
            self._warn_about(known, stacklevel=3)
        self._views = RandomViews(
            index.paths,
            index.sizes,
            index.alpha,
            index.background(background),
            augmentations,
            seed=seed,
            threads=threads,
            device=device,
        )
        self._pipeline: Any = None
        self._in_flight: deque[tuple[int, int, NDArray[np.int64]]] = deque()  # handed to DALI, not yet returned

    @property
    def bad_names(self) -> dict[str, str]:
        """Bad files and unreadable folders as name in the listing → reason."""
        listing = self.index.listing
        return {**listing.unreadable, **{listing.names[i]: reason for i, reason in self._bad.items()}}

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return len(self.index) // (self.batch_size * self.batches_per_step * self.ranks) * self.batches_per_step

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch. Bad files are left out: they are found and replaced again."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the batch that would have come next.

        Raises:
            ValueError: the position does not exist in this data set.
        """
        if not (state["epoch"] >= 0 and 0 <= state["step"] < self.steps_per_epoch):
            raise ValueError(f"loader position {state}: expected a step in [0, {self.steps_per_epoch})")
        self.epoch, self.step = state["epoch"], state["step"]
        self._discard_pipeline()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            if self._pipeline is None:
                self._pipeline = self._views.pipeline(self._feeds(self.epoch, self.step), self.batch_size)
            try:
                views = next_outputs(self._pipeline, self.device)
            except RuntimeError as error:
                self._recover(error)
                continue
            epoch, step, samples = self._in_flight.popleft()
            self.step = (step + 1) % self.steps_per_epoch
            self.epoch = epoch + (self.step == 0)
            return Batch(views, samples, epoch, step)

    def _feeds(self, epoch: int, step: int) -> Iterator[Feed]:
        while True:
            order = epoch_order(self.seed, epoch, len(self.index))
            for s in range(step, self.steps_per_epoch):
                slots = batch_of_rank(order, s, self.batch_size, self.rank, self.ranks)
                samples = replace_bad(slots, self._is_bad, seed=self.seed, epoch=epoch)
                self._in_flight.append((epoch, s, samples))
                yield self._views.feed(samples, epoch)
            epoch, step = epoch + 1, 0

    def _recover(self, error: RuntimeError) -> None:
        """Mark the bad files of a failed batch. The next pipeline starts with this batch, without the bad files.

        Raises:
            RuntimeError: too many files are bad, or the batch failed again without a bad file.
        """
        batches = [samples for _, _, samples in self._in_flight]
        self._discard_pipeline()
        for device in dict.fromkeys(("cpu", self.device)):
            for samples in batches:  # the failed batch, then the batches that DALI prepared in advance
                bad = self._views.find_bad(np.unique(samples), device)
                # If a GPU fails all files that a CPU decodes, the GPU is at fault.
                if bad and (device == "cpu" or len(bad) < len(np.unique(samples))):
                    self._mark_bad(bad)
                    self._warn_about(self.index.by_path(bad), stacklevel=4)
                    return
        if self._retried == (self.epoch, self.step):
            raise error
        # Now all files can be decoded: a file server may have been away for a moment.
        self._retried = (self.epoch, self.step)
        warnings.warn(f"a batch failed although all its files can be decoded; trying it again: {error}", stacklevel=3)

    def _discard_pipeline(self) -> None:
        self._pipeline = None
        self._in_flight.clear()

    def _mark_bad(self, bad: dict[int, str]) -> None:
        """Have these samples replaced from now on.

        Raises:
            RuntimeError: too many files are bad.
        """
        self._bad |= bad
        self._is_bad[list(bad)] = True
        self.bad_files = self.index.by_path(self._bad)
        require_few_bad(self.bad_files, len(self.index))

    def _warn_about(self, bad: dict[str, str], stacklevel: int) -> None:
        warnings.warn(f"{describe_bad_files(bad, len(self.index))}\nOther images replace them.", stacklevel=stacklevel)
