"""Batches of views as torch tensors, and the state that makes a run go on at the very next sample."""

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import CHANGED, describe, fault_of_undecoded, regular_file, require_few
from sce_fast.data.image.augment import Augmentation, EvaluationView
from sce_fast.data.image.graph import (
    Feed,
    evaluation_feed,
    evaluation_pipeline,
    feed_paths,
    feed_view,
    run_once,
    training_pipeline,
)
from sce_fast.data.image.plan import plan_view
from sce_fast.data.index import ImageIndex
from sce_fast.data.order import batch_of_rank, epoch_order, replace_bad
from sce_fast.data.probe import Probe
from sce_fast.util.files import printable


@dataclass(frozen=True)
class Batch:
    """One step's images of one rank."""

    views: list[Tensor]  # V tensors (N, 3, size, size) float32, normalised
    samples: NDArray[np.int64]  # (N,) their numbers in the index, replacements for bad files among them
    epoch: int
    step: int  # in the epoch


class BadFilesError(RuntimeError):
    """Files of an evaluation cannot be decoded; the message names them."""


class TrainingLoader:
    """An endless iterator over training batches, epoch after epoch.

    The global batch and its pixels depend on seed, epoch and step alone: not on the number of ranks or threads, nor
    on where the run was interrupted. The last incomplete batch of an epoch is dropped.

    A file that cannot be read or decoded is warned of, kept with its reason in `bad_files`, and replaced by another
    image of the data set: the same one whenever and by whichever rank it is found, so nothing of this needs saving
    or telling to other ranks. One that decodes to another size than it had when listed counts as bad where the
    planned crop lies outside.

    Args:
        index: the images.
        augmentations: one for each view.
        batch_size: N of this rank.
        batches_per_step: batches of one optimizer step; an epoch ends with a whole one.
        seed: in [0, 2³²).
        rank, ranks: this rank takes the contiguous slice `rank` of each global batch.
        threads: that decode and augment.
        device: "cpu", or "gpu" for the current CUDA device.

    Raises:
        ValueError: the data set is smaller than a global batch, or an argument is out of range.
        RuntimeError: more than MAX_BAD_SHARE of the files are bad, at the start or later; they are counted and named.

    Example:
        >>> loader = TrainingLoader(index_images("photos"), (Augmentation(), Augmentation()), batch_size=64, seed=0)
        >>> batch = next(loader)
        >>> saved = loader.state_dict()   # the next batch is the first after a load
    """

    def __init__(
        self,
        index: ImageIndex,
        augmentations: tuple[Augmentation, ...],
        *,
        batch_size: int,
        seed: int,
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
                f"{len(index)} images in {printable(index.listing.root)}"
            )
        self.index = index
        self.augmentations = augmentations
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_step = batches_per_step
        self.rank, self.ranks = rank, ranks
        self.threads = threads
        self.device = device
        self.epoch, self.step = 0, 0
        self.bad_files: dict[str, str] = {}  # path → reason of those that this rank has found so far
        self._bad: dict[int, str] = {}
        self._is_bad = np.zeros(len(index), dtype=np.bool_)
        self._tried_again: tuple[int, int] | None = None  # position of a failed batch without a bad file
        if index.bad:
            self._replace_from_now_on(index.bad)
            if rank == 0:  # the others know the same
                _warn_of(index, index.bad, stacklevel=3)
        self._pipeline: Any = None
        self._in_flight: deque[tuple[int, int, NDArray[np.int64]]] = deque()  # handed to DALI, not yet returned

    @property
    def bad_names(self) -> dict[str, str]:
        """Of `bad_files`, by their names in the index."""
        return {self.index.listing.names[i]: reason for i, reason in self._bad.items()}

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.index) // (self.batch_size * self.batches_per_step * self.ranks) * self.batches_per_step

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch. Bad files need not be in it: they are found again, and replaced the same."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on with the batch that would have come next.

        Raises:
            ValueError: the position does not exist in this data set.
        """
        if not (state["epoch"] >= 0 and 0 <= state["step"] < self.steps_per_epoch):
            raise ValueError(f"loader position {state}: expected a step in [0, {self.steps_per_epoch})")
        self.epoch, self.step = state["epoch"], state["step"]
        self._pipeline = None
        self._in_flight.clear()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while True:
            if self._pipeline is None:
                self._pipeline = training_pipeline(
                    run_once(self._feeds(self.epoch, self.step)),
                    self.augmentations,
                    batch_size=self.batch_size,
                    threads=self.threads,
                    device=self.device,
                )
            try:
                views = run(self._pipeline, self.device)
            except RuntimeError as error:
                self._set_aside_bad_files(error)
                continue
            epoch, step, samples = self._in_flight.popleft()
            self.step = (step + 1) % self.steps_per_epoch
            self.epoch = epoch + (self.step == 0)
            return Batch(views, samples, epoch, step)

    def _set_aside_bad_files(self, error: RuntimeError) -> None:
        """After a failed batch: notes its bad files; the next pipeline begins with the same batch, without them."""
        batches = [samples for _, _, samples in self._in_flight]
        self._pipeline = None
        self._in_flight.clear()
        for device in dict.fromkeys(("cpu", self.device)):
            for samples in batches:  # the failed one, then those handed over in advance
                bad = self._bad_among(np.unique(samples), device)
                if bad and (device == "cpu" or len(bad) < len(np.unique(samples))):  # not a GPU that fails them all
                    self._replace_from_now_on(bad)
                    _warn_of(self.index, bad, stacklevel=4)
                    return
        if self._tried_again == (self.epoch, self.step):
            raise error
        # All can be decoded now: a file server that was away for a moment, for example.
        self._tried_again = (self.epoch, self.step)
        warnings.warn(f"a batch failed though all its files can be decoded; trying it again: {error}", stacklevel=3)

    def _bad_among(self, samples: NDArray[np.int64], device: str) -> dict[int, str]:
        """Sample → reason, of those that do not decode, or not to the size that their crops were planned for."""
        paths = [self.index.paths[i] for i in samples]
        sizes = decoded_sizes(paths, threads=self.threads, device=device)
        changed = (sizes != self.index.sizes[samples]).any(axis=1)
        reasons = [CHANGED if size[0] else fault_of_undecoded(path) for size, path in zip(sizes, paths, strict=True)]
        return {int(samples[i]): reasons[i] for i in np.flatnonzero(changed)}

    def _replace_from_now_on(self, bad: dict[int, str]) -> None:
        """Sets these samples aside.

        Raises:
            RuntimeError: with them, too many are bad.
        """
        self._bad |= bad
        self._is_bad[list(bad)] = True
        self.bad_files = self.index.by_path(self._bad)
        require_few(self.bad_files, len(self.index))

    def _feeds(self, epoch: int, step: int) -> Iterator[Feed]:
        while True:
            order = epoch_order(self.seed, epoch, len(self.index))
            for s in range(step, self.steps_per_epoch):
                slots = batch_of_rank(order, s, self.batch_size, self.rank, self.ranks)
                samples = replace_bad(slots, self._is_bad, seed=self.seed, epoch=epoch)
                self._in_flight.append((epoch, s, samples))
                yield self._feed(epoch, samples)
            epoch, step = epoch + 1, 0

    def _feed(self, epoch: int, samples: NDArray[np.int64]) -> Feed:
        inputs: list[list[NDArray]] = [feed_paths([self.index.paths[i] for i in samples])]
        for view, augmentation in enumerate(self.augmentations):
            plan = plan_view(
                augmentation, self.index.sizes[samples], seed=self.seed, epoch=epoch, samples=samples, view=view
            )
            inputs.append(feed_view(plan))
        return tuple(inputs)


def evaluation_batches(
    index: ImageIndex, view: EvaluationView, *, batch_size: int = 256, threads: int = 2, device: str = "cpu"
) -> Iterator[Tensor]:
    """All images in the order of the index, (N, 3, crop, crop) float32; the last batch may be smaller.

    Raises:
        ValueError: batch_size is below 1, or a file has no readable header; no image is left out.
        BadFilesError: a file cannot be decoded; it is named.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    require_whole(index)
    starts = range(0, len(index), batch_size)
    feeds = (evaluation_feed(view, index.paths[i : i + batch_size], index.sizes[i : i + batch_size]) for i in starts)
    pipeline = evaluation_pipeline(run_once(feeds), view, batch_size=batch_size, threads=threads, device=device)
    for start in starts:
        try:
            (images,) = run(pipeline, device)
        except RuntimeError as error:
            paths = index.paths[start : start + batch_size]
            sizes = decoded_sizes(paths, threads=threads, device=device)
            bad = {start + i: fault_of_undecoded(paths[i]) for i in np.flatnonzero(sizes[:, 0] == 0).tolist()}
            if not bad:
                raise
            raise BadFilesError(_refusal(index, bad)) from error
        yield images


def _warn_of(index: ImageIndex, bad: dict[int, str], stacklevel: int) -> None:
    found = describe(index.by_path(bad), len(index))
    warnings.warn(f"{found}\nOther images take their places.", stacklevel=stacklevel)


def require_whole(index: ImageIndex) -> None:
    """Makes sure that nothing is known to be wrong with any file.

    Raises:
        ValueError: headers cannot be read; the files are named.
    """
    if index.bad:
        raise ValueError(_refusal(index, index.bad))


def _refusal(index: ImageIndex, bad: dict[int, str]) -> str:
    return (
        f"{describe(index.by_path(bad), len(index))}\nAn evaluation leaves no image out: repair or remove them; "
        "sce-fast scan decodes every file and names all bad ones"
    )


def run(pipeline: Any, device: str) -> list[Tensor]:
    """The next outputs of a pipeline, without a copy; on a GPU ordered on the current stream."""
    outputs = pipeline.run() if device == "cpu" else pipeline.run(torch.cuda.current_stream())
    return [torch.from_dlpack(output.as_tensor()) for output in outputs]


def decoded_sizes(paths: list[bytes], *, threads: int, device: str) -> NDArray[np.int32]:
    """Height and width (n, 2) of what DALI decodes, (0, 0) for what it does not; no pipe or folder is handed to it."""
    sizes = np.zeros((len(paths), 2), dtype=np.int32)
    files = [i for i, path in enumerate(paths) if not isinstance(regular_file(path), str)]
    sizes[files] = Probe(decode=True, threads=threads, device=device).sizes([paths[i] for i in files])
    return sizes
