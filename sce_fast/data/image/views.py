"""Random views of images: what a training loader needs to know about images."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import tee
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.data.faults import CHANGED
from sce_fast.data.image.augment import Augmentation, Photometric
from sce_fast.data.image.files import Item
from sce_fast.data.image.fused import Finish, with_window
from sce_fast.data.image.graph import file_feed, training_pipeline, view_vectors
from sce_fast.data.image.plan import plan_views
from sce_fast.data.image.sizes import decoded_sizes
from sce_fast.data.index import ImageIndex
from sce_fast.data.order import replace_bad
from sce_fast.data.pipeline import Feed


class RandomViews:
    """One random view of an image for each augmentation, as planned from seed, epoch and sample.

    A file whose decoded size has changed since it was listed is bad if the planned crop lies outside. A bad file is
    replaced in all epochs from then on.

    Args:
        index: the images.
        augmentations: one for each view.
        seed: in [0, 2³²).
        background: colour behind transparent images, as background_color takes it; "none" drops their alpha.
        threads: number of threads that decode and augment.
        device: "cpu", or "gpu" for the current CUDA device.
        photometric: what changes the values of pixels: "triton" (our kernel on a GPU), "dali" (DALI's operators), or
            "auto", which is our C++ kernel on a CPU, and on a GPU "triton" where it can run, otherwise "dali".
        dtype: of the views: torch.float32, torch.bfloat16 or torch.float16.

    Raises:
        ValueError: photometric is "triton", but the kernel cannot run here; or another dtype.
    """

    def __init__(
        self,
        index: ImageIndex,
        augmentations: tuple[Augmentation, ...],
        *,
        seed: int,
        background: str = "black",
        threads: int = 2,
        device: str = "cpu",
        photometric: Photometric = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seed, self.device = seed, device
        self._finish = Finish(augmentations, device, photometric, dtype, settings=4, window=17)
        self.bad = dict(index.bad)  # sample → reason, as far as this rank has found bad files
        self._index, self._augmentations, self._threads = index, augmentations, threads
        self._background, self._pillow = index.background(background), index.by_pillow(background)
        self._is_bad = np.zeros(len(index), dtype=np.bool_)
        self._is_bad[list(self.bad)] = True

    def feeds(
        self, batches: Iterator[tuple[int, NDArray[np.int64]]]
    ) -> Generator[tuple[NDArray[np.int64], Feed], None, None]:
        """Yield the samples of each batch, with replacements in place of bad files, and the pipeline's inputs.

        Samples of shards are read ahead of time, within the bounds of run_ahead.

        Args:
            batches: epoch and samples (N,) of each batch.
        """
        replaced, ahead = tee(
            (epoch, replace_bad(samples, self._is_bad, seed=self.seed, epoch=epoch)) for epoch, samples in batches
        )
        with closing(self._index.files.items_ahead(samples for _, samples in ahead)) as ready:
            for (epoch, samples), items in zip(replaced, ready, strict=True):
                yield samples, self._feed(items, samples, epoch)

    def pipeline(self, feeds: Iterator[Feed], batch_size: int) -> Any:
        """Build the pipeline whose outputs `finished` turns into views."""
        return training_pipeline(
            feeds,
            self._augmentations,
            background=self._background,
            batch_size=batch_size,
            threads=self._threads,
            device=self.device,
            contents=self._index.files.are_contents,
            photometric=self._finish.implementation,
        )

    def finished(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return the views (N, 3, size, size) from the pipeline's outputs."""
        return self._finish(outputs)

    def recover(self, batches: list[tuple[int, NDArray[np.int64]]]) -> bool:
        """Find the bad files that made a pipeline fail, and return whether there are any.

        Args:
            batches: the failed batch, then the batches that DALI prepared in advance.
        """
        for device in dict.fromkeys(("cpu", self.device)):
            for _, samples in batches:
                bad = self._find_bad(np.unique(samples), device)
                # If a GPU fails all files that a CPU decodes, the GPU is at fault.
                if bad and (device == "cpu" or len(bad) < len(np.unique(samples))):
                    self.bad |= bad
                    self._is_bad[list(bad)] = True
                    return True
        return False

    def _feed(self, items: Sequence[Item], samples: NDArray[np.int64], epoch: int) -> Feed:
        """Return the pipeline's inputs for these samples: their paths or contents, and the plan of each view."""
        index = self._index
        plan = plan_views(self._augmentations, index.sizes[samples], seed=self.seed, epoch=epoch, samples=samples)
        files = file_feed(items, self._pillow[samples], self._background)
        views = zip(view_vectors(plan), plan.blur_sigma, self._finish.radii, strict=True)
        return *files, *(with_window(*view) for view in views)

    def _find_bad(self, samples: NDArray[np.int64], device: str) -> dict[int, str]:
        """Return sample → reason for images that do not decode on a device, or decode to another size than planned."""
        files, pillow, sizes = self._index.files, self._pillow[samples], self._index.sizes[samples]
        settings: dict[str, Any] = {"background": self._background, "threads": self._threads, "device": device}
        decoded = decoded_sizes(files, samples, pillow, **settings)
        changed = np.flatnonzero((decoded != sizes).any(axis=1)).tolist()
        bad = {int(samples[i]): CHANGED if decoded[i, 0] else files.failure_reason(int(samples[i])) for i in changed}
        for sample in list(bad):
            bad |= files.failing_with(sample)
        return bad
