"""Features that are computed once, by all ranks together, and kept in a folder."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.distributed import Ranks
from sce_fast.evaluate.features import BATCH, extract_features, load_features, save_features
from sce_fast.evaluate.parts import PART, in_parts, require_finite, together
from sce_fast.train.stop import StopRequest
from sce_fast.util.files import printable
from sce_fast.util.terminal import say


class FeatureStore:
    """Features of one backbone, kept as feature files in a folder and computed only if they are not there.

    A file is named by what its features depend on: weights, architecture, view, and the names, sizes and modification
    times of the images. load_features reads it.

    Args:
        folder: of the files; None keeps nothing.
        backbone: images (N, 3, H, W), or clips (N, 3, T, H, W) → (N, F), on its device.
        architecture: JSON values that tell apart networks whose weights have the same names and shapes.
        device: of the backbone.
        ranks: that share the images; every one has to make every call, and has to see the folder.
        batch_size: images or videos at a time; by default that of extract_features.
        threads: number of threads that read images.

    Example:
        >>> store = FeatureStore(Path("features"), network, {}, device=torch.device("cpu"))
        >>> features = store.features(index, EvaluationView(), "train")  # (n, F)
    """

    def __init__(
        self,
        folder: Path | None,
        backbone: nn.Module,
        architecture: dict[str, Any],
        *,
        device: torch.device,
        ranks: Ranks | None = None,
        batch_size: int | None = None,
        threads: int = 2,
    ) -> None:
        self._folder, self._backbone, self._ranks = folder, backbone, ranks or Ranks()
        self._settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "threads": threads}
        self.weights = weights_digest(backbone)
        self._network = {"weights": self.weights, "architecture": architecture}

    @property
    def dim(self) -> int:
        """Width of the features."""
        return int(self._backbone.dim)  # type: ignore[arg-type]

    def features(self, index: Index, view: EvaluationView, title: str) -> Tensor:
        """Return the features (n, F) of all samples on the CPU of every rank.

        Args:
            index: of the images or videos.
            view: that the backbone sees.
            title: of the data set, for the progress bar and the name of the file.

        Raises:
            ValueError, BadFilesError: see shared_features, or a feature is not finite.
            Stopped: a signal asked to end; finished parts are kept. See in_parts.
            OSError: the file cannot be written.
        """
        if self._folder is None:
            features = self._computed(index, view)
            require_finite(features, title)
            return features
        path = self._folder / f"{title}_{self._key(index, view)}.safetensors"
        kept = _kept(path, index)
        if all(self._ranks.gather(kept is not None)):
            assert kept is not None
            return kept
        index.require_readable()  # all of it, before the first part is computed
        batch = self._settings["batch_size"] or BATCH[index.kind]
        return in_parts(
            lambda samples, *listening: self._computed(index.subset(samples), view, *listening),
            lambda features: save_features(path, features, index),
            path,
            bounds=np.arange(len(index) + 1),
            size=max(PART[index.kind] // batch, 1) * batch,  # whole batches: the same bits as without parts
            ranks=self._ranks,
            title=title,
            unit=index.kind.removesuffix("s"),
        )

    def _computed(self, index: Index, view: EvaluationView, *listening: Any) -> Tensor:
        return shared_features(self._backbone, index, view, *listening, ranks=self._ranks, **self._settings)

    def _key(self, index: Index, view: EvaluationView) -> str:
        """Return a hash of everything that the features depend on."""
        data = hashlib.sha256(index.stamps.tobytes() + index.fingerprint.encode()).hexdigest()
        seen = {"kind": type(view).__name__, **dataclasses.asdict(view)}
        text = json.dumps({**self._network, "view": seen, "data": data}, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shared_features(
    backbone: nn.Module,
    index: Index,
    view: EvaluationView,
    request: StopRequest | None = None,
    progress: Callable[[int], object] = lambda samples: None,
    *,
    ranks: Ranks,
    device: torch.device,
    batch_size: int | None = None,
    threads: int = 2,
) -> Tensor:
    """Return the features (n, F) of all samples on the CPU of every rank; each rank computes a contiguous share.

    The running statistics of the first rank's backbone are those of all.

    Args:
        request: open; stops all ranks. See together.
        progress: called with the number of samples of each batch of this rank.

    Raises:
        ValueError: a header cannot be read.
        BadFilesError: a rank cannot decode some files; all ranks raise it.
        Stopped: a rank was asked to stop; all ranks raise it.
    """
    index.require_readable()  # on every rank: an error on one of them alone would leave the others waiting
    samples = np.arange(len(index))
    if ranks.size > 1:
        for buffer in backbone.buffers():
            dist.broadcast(buffer, 0)
        share = -(-len(index) // ranks.size)
        samples = (np.arange(share) + ranks.rank * share) % len(index)
    settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "threads": threads}
    own = together(
        lambda: extract_features(backbone, index.subset(samples), view, progress=progress, **settings), ranks, request
    )
    return ranks.join(own)[: len(index)]


def weights_digest(network: nn.Module) -> str:
    """Return a hash of the names, types and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _kept(path: Path, index: Index) -> Tensor | None:
    """Return the features in a file; None if it does not exist or holds something else."""
    if not os.path.exists(path):
        return None
    try:
        found = load_features(path)
    except ValueError as error:
        say(f"Warning: {error}; its features are computed again")
        return None
    if found.names != index.listing.entries():
        say(f"Warning: {printable(path)} holds features of other files; they are computed again")
        return None
    return found.features
