"""Training batches as torch tensors, and the position from which an interrupted run resumes."""

import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import tee
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import describe_bad_files, require_few_bad
from sce_fast.data.index import Index
from sce_fast.data.order import batch_of_rank, epoch_order
from sce_fast.data.pipeline import Feed, next_outputs, shut_down


class Views(Protocol):
    """What a loader needs to know about a kind of data. RandomViews and RandomClips are the two kinds."""

    @property
    def seed(self) -> int:
        """Seed of the order and of all plans."""

    @property
    def device(self) -> str:
        """Device of the views: "cpu", or "gpu" for the current CUDA device."""

    @property
    def bad(self) -> Mapping[int, str]:
        """Bad samples → reason, of the index and as far as this rank has found them."""

    def feeds(
        self, batches: Iterator[tuple[int, NDArray[np.int64]]]
    ) -> Generator[tuple[NDArray[np.int64], Feed], None, None]:
        """Yield the samples used for each batch (epoch, samples (N,)), and the pipeline's inputs.

        Closing the generator ends all work that it has begun.
        """

    def pipeline(self, feeds: Iterator[Feed], batch_size: int) -> Any:
        """Build the pipeline that turns feeds into the outputs that `finished` takes."""

    def finished(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return one tensor for each view from the outputs of a pipeline."""

    def recover(self, batches: list[tuple[int, NDArray[np.int64]]]) -> bool:
        """Find the samples that made a pipeline fail, so that later feeds avoid them; return whether there are any."""


@dataclass(frozen=True)
class Batch:
    """One batch of one rank."""

    views: list[Tensor]  # V tensors (N, 3, size, size), or clips (N, 3, F, size, size); normalised
    samples: NDArray[np.int64]  # (N,) their numbers in the index, with replacements in place of bad files
    epoch: int
    step: int  # in the epoch


class TrainingLoader:
    """An endless iterator over training batches, epoch after epoch.

    The global batch and its pixels depend only on seed, epoch and step. They do not depend on the number of ranks or
    threads, or on interruptions. The last incomplete batch of an epoch is dropped.

    A file that cannot be read or decoded causes a warning, is recorded with its reason in `bad_files`, and is replaced
    by another sample of the data set. The replacement does not depend on when, or by which rank, the file is found.
    Bad files are therefore neither saved nor sent to other ranks.

    Close a loader that is no longer needed. DALI holds it otherwise, with its threads, until the program ends.

    Args:
        index: the images or videos.
        views: their random views; RandomViews for images, RandomClips for videos.
        batch_size: N of this rank.
        batches_per_step: batches of one optimizer step; an epoch ends with a complete step.
        rank, ranks: this rank takes slice `rank` of `ranks` contiguous slices of each global batch.

    Raises:
        ValueError: the data set is smaller than a global batch, or an argument is out of range.
        RuntimeError: more than MAX_BAD_SHARE of the files are bad, at the start or later, or of the images are lost
            with their shards; the message counts and names them.

    Example:
        >>> index = index_images("photos")
        >>> views = RandomViews(index, (Augmentation(), Augmentation()), seed=0)
        >>> loader = TrainingLoader(index, views, batch_size=64)
        >>> batch = next(loader)
        >>> saved = loader.state_dict()   # a loader that loads it continues with the next batch
    """

    def __init__(
        self,
        index: Index,
        views: Views,
        *,
        batch_size: int,
        batches_per_step: int = 1,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank={rank}: expected 0 to {ranks - 1}")
        if not 0 <= views.seed < 2**32:
            raise ValueError(f"seed={views.seed}: expected 0 to 2**32 - 1")
        if len(index) < batch_size * batches_per_step * ranks:
            raise ValueError(
                f"batch_size={batch_size * batches_per_step * ranks} on {ranks} rank(s) is larger than the data set of "
                f"{len(index)} {index.kind} in {index.listing.title}"
            )
        self.index = index
        self.batch_size = batch_size
        self.seed, self.device = views.seed, views.device
        self.batches_per_step = batches_per_step
        self.rank, self.ranks = rank, ranks
        self.epoch, self.step = 0, 0
        self.bad_files: dict[str, str] = {}  # path → reason, as far as this rank has found them
        self._bad: dict[int, str] = {}
        self._retried: tuple[int, int] | None = None  # position of a batch that failed without a bad file
        self._views = views
        self._pipeline: Any = None
        self._feeds: Generator[Feed, None, None] | None = None
        self._in_flight: deque[tuple[int, int, NDArray[np.int64]]] = deque()  # handed to DALI, not yet returned
        self._record_bad()
        index.listing.require_few_lost()
        if rank == 0 and (known := index.bad_files()):  # the other ranks have the same index
            self._warn_about(known, stacklevel=3)

    @property
    def bad_names(self) -> dict[str, str]:
        """Bad files and unreadable folders as entry of the listing → reason."""
        entries = self.index.listing.entries()
        return {**self.index.listing.unreadable, **{entries[i]: reason for i, reason in self._bad.items()}}

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
        self.close()

    def close(self) -> None:
        """Stop to decode ahead, and free the pipeline. The next batch starts both again and is the same."""
        if self._pipeline is not None:
            shut_down(self._pipeline)
        self._pipeline = None
        if self._feeds is not None:
            self._feeds.close()
        self._feeds = None
        self._in_flight.clear()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            if self._feeds is None:
                self._feeds = self._feeds_from(self.epoch, self.step)
                self._pipeline = self._views.pipeline(self._feeds, self.batch_size)
            try:
                outputs = next_outputs(self._pipeline, self.device)
            except RuntimeError as error:
                self._recover(error)
                continue
            except BaseException:
                self.close()  # a pipeline whose feeds have failed would end as if there were no more batches
                raise
            if found := self._record_bad():
                self._warn_about(found, stacklevel=3)
            epoch, step, samples = self._in_flight.popleft()
            self.step = (step + 1) % self.steps_per_epoch
            self.epoch = epoch + (self.step == 0)
            return Batch(self._views.finished(outputs), samples, epoch, step)

    def _feeds_from(self, epoch: int, step: int) -> Generator[Feed, None, None]:
        planned, ahead = tee(self._planned(epoch, step))
        with closing(self._views.feeds((epoch, samples) for epoch, _, samples in ahead)) as feeds:
            for (epoch, step, _), (samples, feed) in zip(planned, feeds, strict=True):
                self._in_flight.append((epoch, step, samples))
                yield feed

    def _planned(self, epoch: int, step: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        """Yield epoch, step and samples (N,) of all batches from this one on, without regard to bad files."""
        while True:
            order = epoch_order(self.seed, epoch, len(self.index))
            for s in range(step, self.steps_per_epoch):
                yield epoch, s, batch_of_rank(order, s, self.batch_size, self.rank, self.ranks)
            epoch, step = epoch + 1, 0

    def _recover(self, error: RuntimeError) -> None:
        """Find what made a batch fail. The next pipeline starts with this batch, without the bad files.

        Raises:
            RuntimeError: too many files are bad, or the batch failed again without a bad file.
        """
        batches = [(epoch, samples) for epoch, _, samples in self._in_flight]
        self.close()
        bad = self._record_bad()
        found = self._views.recover(batches)
        if bad := bad | self._record_bad():
            self._warn_about(bad, stacklevel=4)
        if found:
            return
        if self._retried == (self.epoch, self.step):
            raise error
        # Now all files can be decoded: a file server may have been away for a moment.
        self._retried = (self.epoch, self.step)
        why = f"a batch failed, but none of its files is known to be bad; trying it again: {error}"
        warnings.warn(why, stacklevel=3)

    def _record_bad(self) -> dict[str, str]:
        """Record the samples that have been found bad since the last call, and return path → reason.

        Raises:
            RuntimeError: too many files are bad.
        """
        found = {i: reason for i, reason in self._views.bad.items() if i not in self._bad}
        if found:
            self._bad |= found
            self.bad_files = self.index.by_path(self._bad)
            try:
                require_few_bad(self.bad_files, len(self.index))
            except RuntimeError:
                self.close()
                raise
        return self.index.by_path(found)

    def _warn_about(self, bad: dict[str, str], stacklevel: int) -> None:
        warnings.warn(
            f"{describe_bad_files(bad, len(self.index))}\nOther {self.index.kind} replace them.", stacklevel=stacklevel
        )
