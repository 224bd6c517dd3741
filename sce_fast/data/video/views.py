"""Random clips of videos: what a training loader needs to know about videos."""

import os
import threading
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import require_few_bad
from sce_fast.data.image.augment import Augmentation, Photometric
from sce_fast.data.image.fused import Finish, settings_of, with_window
from sce_fast.data.order import replace_bad
from sce_fast.data.pipeline import Feed
from sce_fast.data.video.clips import ClipSampling
from sce_fast.data.video.decode import VideoError
from sce_fast.data.video.graph import refused_by_dali, training_clip_pipeline
from sce_fast.data.video.index import VideoIndex
from sce_fast.data.video.inputs import ClipInput, Ways, clip_feed, clip_input, share_threads, ways_of
from sce_fast.data.video.plan import ClipPlan, plan_clips
from sce_fast.data.video.routes import recoloured, routes
from sce_fast.util.ahead import Work, run_ahead
from sce_fast.util.files import printable


class RandomClips:
    """One random clip of a video for each augmentation, as planned from seed, epoch and sample.

    DALI decodes the videos that it can decode on this device. Of the others, a pool of threads decodes the planned
    frames ahead of time. Whether a video is bad may depend on the planned frames, because damage is often local. The
    videos that are replaced, and those that DALI refuses although it should know them, are therefore found anew in
    each epoch: a run that has resumed does not know what it found before.

    Args:
        index: the videos.
        sampling: which frames a clip shows.
        augmentations: one for each view.
        seed: in [0, 2³²).
        threads: number of threads that decode and augment.
        device: "cpu", or "gpu" for the current CUDA device.
        photometric, dtype: as of RandomViews.

    Raises:
        ValueError: as RandomViews.
    """

    def __init__(
        self,
        index: VideoIndex,
        sampling: ClipSampling,
        augmentations: tuple[Augmentation, ...],
        *,
        seed: int,
        threads: int = 2,
        device: str = "cpu",
        photometric: Photometric = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed, self.device = seed, device
        self._finish = Finish(augmentations, device, photometric, dtype, settings=6, window=20)
        self._index, self._sampling, self._augmentations = index, sampling, augmentations
        self._unreadable = np.zeros(len(index), dtype=np.bool_)
        self._unreadable[list(index.bad)] = True
        self._by_dali, self._recoloured = routes(index, device), recoloured(index)
        self._pool_threads, self._dali_threads = share_threads(self._by_dali[~self._unreadable], threads, device)
        self._refused: set[tuple[int, int]] = set()  # (epoch, sample) that DALI does not decode after all
        self._bad = dict(index.bad)
        self._lock = threading.Lock()

    @property
    def bad(self) -> dict[int, str]:
        """Sample → reason, as far as this rank has found bad files. Some may be bad in parts only."""
        with self._lock:
            return dict(self._bad)

    def feeds(
        self, batches: Iterator[tuple[int, NDArray[np.int64]]]
    ) -> Generator[tuple[NDArray[np.int64], Feed], None, None]:
        """Yield the samples of each batch, with replacements in place of bad files, and the pipeline's inputs.

        A pool of threads decodes the next batches, within the bounds of run_ahead. Closing the generator ends its
        threads.

        Args:
            batches: epoch and samples (N,) of each batch.

        Raises:
            RuntimeError: too many files are bad, or a file makes the decoder fail in an unknown way.
        """
        ways = self._ways()
        work = (self._work(epoch, samples) for epoch, samples in batches)
        with closing(run_ahead(work, threads=self._pool_threads)) as ready:
            for inputs in ready:
                yield np.array([i.sample for i in inputs], dtype=np.int64), clip_feed(inputs, ways)

    def pipeline(self, feeds: Iterator[Feed], batch_size: int) -> Any:
        """Build the pipeline whose outputs `finished` turns into views."""
        return self._build(feeds, self._ways(), batch_size)

    def finished(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the views (N, 3, F, size, size) from the pipeline's outputs."""
        return self._finish(outputs)

    def recover(self, batches: list[tuple[int, NDArray[np.int64]]]) -> bool:
        """Find the videos that made DALI fail, and have them decoded ahead of time; return whether there are any.

        Args:
            batches: the failed batch, then the batches that DALI prepared in advance.
        """
        for epoch, samples in batches:
            used = [s for s in np.unique(samples).tolist() if self._goes_to_dali(epoch, s)]
            if not used:
                continue
            one_by_one = partial(self._build, ways=Ways.DALI, batch_size=1, prefetch=1)
            refused = refused_by_dali(self.planned(epoch, np.array(used, dtype=np.int64)), one_by_one)
            # If a GPU fails all videos, the GPU is at fault.
            if refused and (self.device == "cpu" or len(refused) < max(len(used), 2)):
                self._refused |= {(epoch, i.sample) for i in refused}
                names = ", ".join(printable(os.fsdecode(i.path)) for i in refused)
                warnings.warn(f"DALI does not decode all frames of {names}; FFmpeg tries instead", stacklevel=4)
                return True
        return False

    def planned(self, epoch: int, samples: NDArray[np.int64]) -> list[ClipInput]:
        """Return these samples as planned, not yet decoded."""
        index = self._index
        plans = plan_clips(
            self._sampling,
            self._augmentations,
            index.timelines,
            index.sizes[samples],
            seed=self.seed,
            epoch=epoch,
            samples=samples,
        )
        settings = [_settings(plan, radius) for plan, radius in zip(plans, self._finish.radii, strict=True)]
        return [
            clip_input(
                index, sample, [(_frames(p, n), p.view.boxes[n], s[n]) for p, s in zip(plans, settings, strict=True)]
            )
            for n, sample in enumerate(samples.tolist())
        ]

    def _ways(self) -> Ways:
        readable = ~self._unreadable
        ways = ways_of(self._by_dali[readable], self._recoloured[readable])
        return ways | Ways.AHEAD if self._refused else ways

    def _build(self, feeds: Iterator[Feed], ways: Ways, batch_size: int, prefetch: int = 2) -> Any:
        return training_clip_pipeline(
            feeds,
            self._augmentations,
            ways=ways,
            differences=self._sampling.temporal_difference > 0,
            batch_size=batch_size,
            threads=self._dali_threads,
            device=self.device,
            prefetch=prefetch,
            photometric=self._finish.implementation,
        )

    def _goes_to_dali(self, epoch: int, sample: int) -> bool:
        return bool(self._by_dali[sample]) and (epoch, sample) not in self._refused

    def _work(self, epoch: int, samples: NDArray[np.int64]) -> Work[ClipInput]:
        readable = replace_bad(samples, self._unreadable, seed=self.seed, epoch=epoch)
        planned = self.planned(epoch, readable)
        tasks = [partial(self._decoded, epoch, slot, p) for slot, p in zip(samples.tolist(), planned, strict=True)]
        return Work(tasks, sum(p.size for p in planned if not self._goes_to_dali(epoch, p.sample)))

    def _decoded(self, epoch: int, slot: int, planned: ClipInput) -> ClipInput:
        """Return the planned sample, decoded unless DALI does it, or the sample that replaces it; runs in the pool.

        Args:
            slot: sample that the order of the epoch has put here.
        """
        is_bad = self._unreadable
        while not self._goes_to_dali(epoch, planned.sample):
            try:
                return planned.decoded(self._index)
            except VideoError as error:
                self._note_bad(planned.sample, error.reason)
            is_bad = is_bad.copy()
            is_bad[planned.sample] = True
            other = replace_bad(np.array([slot]), is_bad, seed=self.seed, epoch=epoch)
            (planned,) = self.planned(epoch, other)
        return planned

    def _note_bad(self, sample: int, reason: str) -> None:
        """Record a bad file.

        Raises:
            RuntimeError: too many files are bad.
        """
        with self._lock:
            self._bad.setdefault(sample, reason)
        require_few_bad(self._index.by_path(self.bad), len(self._index))


def _frames(plan: ClipPlan, n: int) -> NDArray[np.int64]:
    """Return the frames of one clip: F, or for a temporal difference 2F, with the frames to subtract behind."""
    return np.concatenate([plan.frames[n], plan.neighbours[n]]) if plan.difference[n] else plan.frames[n]


def _settings(plan: ClipPlan, radius: int) -> NDArray[np.float32]:
    """Return the settings (N, columns) of a view's vectors: those of settings_of, and the difference.

    Args:
        radius: if given, the settings end with the blur's window, as Finish takes it.
    """
    settings = np.concatenate([settings_of(plan.view), plan.difference[:, None]], axis=1, dtype=np.float32)
    return with_window(settings, plan.view.blur_sigma, radius)
