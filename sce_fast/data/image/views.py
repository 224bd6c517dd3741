"""Random views of images: what a training loader needs to know about images."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import CHANGED
from sce_fast.data.image.augment import Augmentation
from sce_fast.data.image.background import Color
from sce_fast.data.image.formats import decode_failure_reason
from sce_fast.data.image.graph import file_feed, training_pipeline, view_vectors
from sce_fast.data.image.plan import plan_view
from sce_fast.data.image.sizes import decoded_sizes
from sce_fast.data.pipeline import Feed


@dataclass(frozen=True)
class RandomViews:
    """One random view of an image for each augmentation, as planned from seed, epoch and sample."""

    paths: list[bytes]
    sizes: NDArray[np.int32]  # (n, 2) height and width of each image when it was listed
    alpha: NDArray[np.bool_]  # (n,) whether each image has alpha
    background: Color | None  # behind images with alpha; None drops alpha
    augmentations: tuple[Augmentation, ...]
    seed: int
    threads: int
    device: str

    def pipeline(self, feeds: Iterator[Feed], batch_size: int) -> Any:
        """Build the pipeline that turns feeds into views."""
        return training_pipeline(
            feeds,
            self.augmentations,
            background=self.background,
            batch_size=batch_size,
            threads=self.threads,
            device=self.device,
        )

    def feed(self, samples: NDArray[np.int64], epoch: int) -> Feed:
        """Return the pipeline's inputs for these samples: their paths and the plan of each view."""
        sizes = self.sizes[samples]
        plans = [
            plan_view(augmentation, sizes, seed=self.seed, epoch=epoch, samples=samples, view=view)
            for view, augmentation in enumerate(self.augmentations)
        ]
        files = file_feed([self.paths[i] for i in samples], self.alpha[samples], self.background)
        return *files, *(view_vectors(plan) for plan in plans)

    def find_bad(self, samples: NDArray[np.int64], device: str) -> dict[int, str]:
        """Return sample → reason for images that do not decode on a device, or decode to another size than planned."""
        paths = [self.paths[i] for i in samples]
        sizes = decoded_sizes(
            paths, self.alpha[samples], background=self.background, threads=self.threads, device=device
        )
        changed = np.flatnonzero((sizes != self.sizes[samples]).any(axis=1))
        return {int(samples[i]): CHANGED if sizes[i, 0] else decode_failure_reason(paths[i]) for i in changed}
