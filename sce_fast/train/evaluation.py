"""kNN evaluation every few epochs of a run, with the images or videos shared among the ranks."""

from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.config import TrainConfig
from sce_fast.data.index import ImageIndex, Index
from sce_fast.data.video.index import VideoIndex
from sce_fast.distributed import Ranks
from sce_fast.evaluate.class_labels import labelled_indices
from sce_fast.evaluate.knn import knn_top1
from sce_fast.evaluate.overlap import shared_samples, warning
from sce_fast.evaluate.store import shared_features
from sce_fast.util.terminal import say


class PeriodicEvaluation:
    """Classifies the labelled folders of a config by kNN; never due if the config names no folders.

    Args:
        config: of the run.
        device: of the networks.
        ranks: that share the run; every one has to make every call.

    Raises:
        ValueError, FileNotFoundError: see labelled_indices.
    """

    def __init__(self, config: TrainConfig, device: torch.device, ranks: Ranks) -> None:
        self._config, self._device, self._ranks = config, device, ranks
        train, test, threads = config.evaluation.train, config.evaluation.test, config.loader_threads
        self.view = config.evaluation_view()
        self.indices: tuple[ImageIndex | VideoIndex, ...] = ()
        if train is not None and test is not None:
            settings: dict[str, Any] = {"threads": threads, "classes": config.subset.classes}
            self.indices = ranks.first_then_others(lambda: labelled_indices(train, test, self.view, **settings))
            ranks.first(self._warn)

    def is_due(self, epoch: int) -> bool:
        """Return whether to evaluate after this many whole epochs: at the start, every few epochs, and at the end."""
        return bool(self.indices) and (epoch % self._config.evaluation.every == 0 or epoch == self._config.epochs)

    def knn_top1(self, backbone: nn.Module) -> float:
        """Return the share of test samples whose nearest train samples vote for the right class.

        Raises:
            BadFilesError: see features.
        """
        train, test = (self.features(backbone, index) for index in self.indices)
        train_labels, test_labels = (torch.as_tensor(index.labels) for index in self.indices)
        k = self._config.evaluation.neighbours
        return self._ranks.first(lambda: knn_top1(train, train_labels, test, test_labels, neighbours=k))

    def _warn(self) -> None:
        """Say what makes the accuracy better or worse than it seems."""
        (train, test), k = self.indices, self._config.evaluation.neighbours
        if shared := shared_samples(train, test):
            say(f"Warning: {warning(shared, len(test), test.kind)}")
        if k > len(train):
            say(
                f"Warning: evaluation.neighbours={k}: all {len(train)} train {train.kind} vote, since there are no more"
            )

    def features(self, backbone: nn.Module, index: Index) -> Tensor:
        """Return the features (n, F) of all samples, on the CPU of every rank.

        Raises:
            BadFilesError: see shared_features.
        """
        settings: dict[str, Any] = {"device": self._device, "threads": self._config.loader_threads}
        return shared_features(backbone, index, self.view, ranks=self._ranks, **settings)
