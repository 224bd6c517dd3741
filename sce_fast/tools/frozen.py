"""What the commands that evaluate frozen features share: the backbone with its stored features, and the results."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.config import default_loader_threads, to_json
from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.distributed import Ranks
from sce_fast.evaluate.results import EvaluationResult, evaluations_folder, finished_rows, result_folder
from sce_fast.evaluate.sets.image_set import HOW_TO_LEAVE_OUT, ImageSet
from sce_fast.evaluate.store import FeatureStore
from sce_fast.export import Description, ForeignNetwork, open_backbone
from sce_fast.util.files import printable
from sce_fast.util.terminal import say

FEATURES = "features"  # folder beside the evaluations of a run, which all of them share
NOT_ARCHITECTURE = (
    "momentum",
    "step",
    "mean",
    "std",
    "resize",
    "crop",
    "background",
    "clips",
    "weights",
)  # of a description


@dataclass(frozen=True)
class Frozen:
    """A backbone whose features are computed once."""

    source: Path  # run folder or exported file
    description: Description
    features_folder: Path
    store: FeatureStore
    settings: dict[str, Any]  # of the store

    @property
    def threads(self) -> int:
        """Number of threads that read images."""
        return int(self.settings["threads"])

    def store_of(self, network: nn.Module) -> FeatureStore:
        """Return a store of features of the same architecture with other weights."""
        return FeatureStore(
            self.features_folder,
            network.to(self.settings["device"]),
            architecture_of(self.description),
            **self.settings,
        )

    def image_view(self, *, resize: int | None, crop: int | None, interpolation: str) -> EvaluationView:
        """Return the view of a centre crop.

        Args:
            resize: of the shorter side; by default as long as the crop.
            crop: side of the crop; by default the backbone's own.

        Raises:
            ValueError: the backbone takes clips, or a size is out of range.
        """
        own = self.description.view()
        if isinstance(own, ClipEvaluationView):
            raise ValueError(f"{printable(self.source)} is a backbone of clips; expected one of images")
        crop = own.crop if crop is None else crop
        return dataclasses.replace(
            own, resize=crop if resize is None else resize, crop=crop, interpolation=interpolation
        )

    def features_of(self, images: ImageSet, view: EvaluationView, name: str) -> Tensor:
        """Return the features (n, F) of all images of a data set; every rank has to make the call.

        Args:
            images: the data set.
            view: that the backbone sees.
            name: of the data set.

        Raises:
            ValueError, BadFilesError: images cannot be read or decoded; the message names them.
        """
        lists, ranks = self.features_folder / "lists" / f"{name}.txt", self.settings["ranks"]
        index = ranks.first_then_others(lambda: images.index(view, lists, threads=self.threads))
        try:
            return self.store.features(index, view, name)
        except BadFilesError as error:
            raise BadFilesError(f"{error}. {HOW_TO_LEAVE_OUT}") from error

    def origin(self) -> dict[str, Any]:
        """Return JSON values of the backbone for the settings of a result."""
        return {
            "source": str(self.source), "weights": self.store.weights, "backbone": to_json(self.description),
        }  # fmt: skip


def open_frozen(
    source: Path,
    *,
    network: ForeignNetwork | None,
    features: Path | None,
    batch_size: int | None,
    device: torch.device,
    ranks: Ranks,
) -> Frozen:
    """Return the backbone of a run or a file, with a store of its features.

    Args:
        source: run folder, exported file or weights from elsewhere.
        network: of weights from elsewhere.
        features: folder of the features; by default one beside the run's evaluations.
        batch_size: images or videos at a time; by default that of extract_features.
        device: of the backbone.
        ranks: that share the work; each has to make the call.

    Raises:
        FileNotFoundError, ValueError: as open_backbone, or batch_size is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    backbone = open_backbone(source, backbone=network)
    folder = evaluations_folder(source) / FEATURES if features is None else Path(features)
    settings: dict[str, Any] = {
        "device": device, "ranks": ranks, "batch_size": batch_size, "threads": default_loader_threads(),
    }  # fmt: skip
    store = FeatureStore(folder, backbone.network.to(device), architecture_of(backbone.description), **settings)
    return Frozen(source, backbone.description, folder, store, settings)


def architecture_of(description: Description) -> dict[str, Any]:
    """Return what of a description tells apart networks, as JSON values."""
    return {name: value for name, value in to_json(description).items() if name not in NOT_ARCHITECTURE}


def results_place(
    source: Path, out: Path | None, evaluation: str, settings: dict[str, Any], *, ranks: Ranks, resume: bool
) -> tuple[Path, list[dict[str, Any]]]:
    """Return the folder for the results, `out` or one beside the run, and the rows that are finished there.

    Raises:
        ValueError: as finished_rows.
    """

    def look() -> list[Any]:
        folder = out or result_folder(source, evaluation, settings, resume=resume)
        return [str(folder), finished_rows(folder, evaluation, settings, resume=resume)]

    folder, rows = ranks.first(look)
    return Path(folder), rows


def finish(
    result: EvaluationResult, folder: Path | None, draw: Callable[[EvaluationResult, Path], object], ranks: Ranks
) -> EvaluationResult:
    """On the first rank, write a result and its pictures, and print its table with the names of the files.

    Args:
        result: finished.
        folder: of the results; None only prints.
        draw: draws pictures of a result into a folder.
        ranks: of the evaluation.

    Raises:
        OSError: a file cannot be written.
    """
    if not ranks.is_first:
        return result
    print(result.table())
    if folder is not None:
        result.write(folder)
        try:
            draw(result, folder)
        except ImportError as error:
            say(f"Warning: no picture: {error}")
        files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        print(f"\nIn {printable(folder)}: {', '.join(files)}")
    return result
