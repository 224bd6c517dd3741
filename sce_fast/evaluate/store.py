"""Features that are computed once, by all ranks together, and kept in a folder."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.distributed import Ranks
from sce_fast.evaluate.features import extract_features, load_features, save_features
from sce_fast.util.files import printable
from sce_fast.util.terminal import progress_bar, say


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

    def features(self, index: Index, view: EvaluationView, title: str) -> Tensor:
        """Return the features (n, F) of all samples on the CPU of every rank.

        Args:
            index: of the images or videos.
            view: that the backbone sees.
            title: of the data set, for the progress bar and the name of the file.

        Raises:
            ValueError, BadFilesError: see shared_features, or a feature is not finite.
            OSError: the file cannot be written.
        """
        path = None if self._folder is None else self._folder / f"{title}_{self._key(index, view)}.safetensors"
        kept = None if path is None else _kept(path, index)
        if all(self._ranks.gather(kept is not None)):
            assert kept is not None
            return kept
        features = shared_features(
            self._backbone, index, view, ranks=self._ranks, title=f"Features of {title}", **self._settings
        )
        if bad := int((~features.isfinite().all(1)).sum()):
            raise ValueError(f"{title}: {bad} of {len(features)} feature rows are not finite")
        if path is not None:
            self._ranks.first(lambda: save_features(path, features, index))
        return features

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
    *,
    ranks: Ranks,
    device: torch.device,
    batch_size: int | None = None,
    threads: int = 2,
    title: str | None = None,
) -> Tensor:
    """Return the features (n, F) of all samples on the CPU of every rank; each rank computes a contiguous share.

    The running statistics of the first rank's backbone are those of all.

    Args:
        title: text of the progress bar on the first rank; None shows no bar.

    Raises:
        ValueError: a header cannot be read.
        BadFilesError: a rank cannot decode some files; all ranks raise it.
    """
    index.require_readable()  # on every rank: an error on one of them alone would leave the others waiting
    samples = np.arange(len(index))
    if ranks.size > 1:
        for buffer in backbone.buffers():
            dist.broadcast(buffer, 0)
        share = -(-len(index) // ranks.size)
        samples = (np.arange(share) + ranks.rank * share) % len(index)
    settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "threads": threads}
    features, failure = torch.empty(0), None
    silent = title is None or not ranks.is_first
    with progress_bar(len(samples), title or "", unit=index.kind.removesuffix("s"), silent=silent) as bar:
        try:
            features = extract_features(backbone, index.subset(samples), view, progress=bar.update, **settings)
        except BadFilesError as error:
            failure = str(error)
    failures = [found for found in ranks.gather(failure) if found is not None]
    if failures:
        raise BadFilesError(failures[0])
    return torch.cat(ranks.gather_tensors(features))[: len(index)]


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
