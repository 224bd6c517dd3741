"""What the commands that train a classifier share: the network and the two labelled sets, and the picture."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sce_fast.config import to_json
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.data.video.index import VideoIndex
from sce_fast.distributed import Ranks
from sce_fast.evaluate.overlap import shared_samples, warning
from sce_fast.evaluate.results import EvaluationResult, result_folder
from sce_fast.evaluate.supervised.batches import LabelledBatches
from sce_fast.evaluate.supervised.images import Preset
from sce_fast.evaluate.supervised.run import Setup, run_supervised
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.export import Backbone, Description
from sce_fast.tools.chosen_sets import ChosenSets
from sce_fast.tools.frozen import finish
from sce_fast.tools.pictures import draw_lines
from sce_fast.util.files import printable
from sce_fast.util.terminal import say

PICTURE = "accuracy.png"


@dataclass(frozen=True)
class Task:
    """A backbone and the samples to train and test a classifier on."""

    source: Path  # run folder or exported file
    description: Description
    network: nn.Module
    train: ImageIndex | VideoIndex
    test: ImageIndex | VideoIndex  # of the same kind
    view: EvaluationView  # of the test samples
    origin: dict[str, Any]  # of the results, as JSON values
    notes: tuple[str, ...] = ()  # below the table

    @property
    def dim(self) -> int:
        """Width of the features."""
        return int(self.network.dim)  # type: ignore[arg-type]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.train.listing.classes

    def setup(self, evaluation: str, batches: LabelledBatches, settings: SupervisedSettings, **origin: Any) -> Setup:
        """Return the setup of an evaluation that trains on these batches; `origin` adds to that of the results."""
        origin = {**self.origin, **origin}
        return Setup(evaluation, self.network, self.dim, self.classes, batches, settings, origin, self.notes)


def open_task(
    run: Path, backbone: Backbone, view: EvaluationView, sets: ChosenSets, *, threads: int, ranks: Ranks
) -> Task:
    """Return a backbone with both labelled sets; warn of samples that are in both, and of missing files.

    Args:
        run: run folder, exported file or weights from elsewhere that the backbone is from.
        backbone: its network is not copied.
        view: of the test samples.
        sets: the two sets.
        threads: number of threads that read files.
        ranks: every one has to make the call.

    Raises:
        FileNotFoundError, ValueError: as labelled_indices.
    """
    train, test = ranks.first_then_others(lambda: sets.indices(view, threads=threads))
    missing = sets.missing()
    if ranks.is_first:
        shared = shared_samples(train, test)
        for line in [*missing, *([warning(shared, len(test), test.kind)] if shared else [])]:
            say(f"Warning: {line}")
    origin = {"source": str(run), "backbone": to_json(backbone.description), "view": to_json(view), **sets.origin()}
    for name, index in (("train", train), ("test", test)):
        noted = {"fingerprint": index.fingerprint, "contents": ranks.first(index.contents)}
        origin[name] = {"path": origin[name], index.kind: len(index), **noted}
    origin["classes"] = len(train.listing.classes)
    return Task(run, backbone.description, backbone.network, train, test, view, origin, tuple(missing))


def image_view(
    run: Path, description: Description, *, preset: Preset | None, size: int | None, resize: int | None
) -> EvaluationView:
    """Return the view of test images.

    Args:
        run: of the backbone, for messages.
        description: of the backbone.
        preset: gives size and resize where they are None; None if the backbone's own count.
        size: side of the centre crop; by default the backbone's own.
        resize: of the shorter side; by default the backbone's own, or 8/7 of a size that is given.

    Raises:
        ValueError: the backbone takes clips, or a size is out of range.
    """
    own = description.view()
    if isinstance(own, ClipEvaluationView):
        raise ValueError(f"{printable(run)} is a backbone of clips; expected one of images")
    if preset is not None:
        size, resize = preset.size if size is None else size, preset.resize if resize is None else resize
    crop = own.crop if size is None else size
    if resize is None:
        resize = own.resize if size is None else round(size * 8 / 7)
    return dataclasses.replace(own, crop=crop, resize=resize)


def evaluated(
    setup: Setup, run: Path | None, out: Path | None, *, device: torch.device, ranks: Ranks, resume: bool
) -> EvaluationResult:
    """Train and test the classifiers of a setup; return the result after its table and picture are written.

    Raises:
        ValueError: there is no folder for results, or it holds others.
        Stopped, RuntimeError: as run_supervised.
    """
    folder = folder_of(run, out, setup.evaluation, setup.described(), ranks=ranks, resume=resume)
    result = run_supervised(setup, folder, device=device, ranks=ranks, resume=resume)
    return finish(result, folder, draw_accuracies, ranks)


def folder_of(
    run: Path | None, out: Path | None, evaluation: str, described: dict[str, Any], *, ranks: Ranks, resume: bool
) -> Path:
    """Return the folder for the results: `out`, or one beside the run.

    Raises:
        ValueError: there is neither.
    """
    if out is not None:
        return Path(out)
    if run is None:
        raise ValueError("feature files have no folder for results: give one with --out")
    return Path(ranks.first(lambda: str(result_folder(Path(run), evaluation, described, resume=resume))))


def draw_accuracies(result: EvaluationResult, folder: Path) -> Path:
    """Draw the top-1 accuracy of each head over the epochs, as accuracy.png in a folder; return its path."""
    lines = {
        f"learning rate {row['learning_rate']:g}": [(at["epoch"], at["top1"]) for at in row["history"]]
        for row in result.rows
    }
    return draw_lines(lines, folder / PICTURE, across="epoch", up="top-1")
