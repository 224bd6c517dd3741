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
from sce_fast.distributed import Ranks
from sce_fast.evaluate.overlap import shared_samples, warning
from sce_fast.evaluate.results import EvaluationResult, result_folder
from sce_fast.evaluate.supervised.images import Preset
from sce_fast.evaluate.supervised.run import Setup, run_supervised
from sce_fast.evaluate.supervised.settings import SupervisedSettings
from sce_fast.export import Description, ForeignNetwork, open_backbone
from sce_fast.tools.chosen_sets import chosen_sets
from sce_fast.tools.frozen import finish
from sce_fast.tools.pictures import draw_lines
from sce_fast.util.files import printable
from sce_fast.util.names import pick
from sce_fast.util.settings import replaced
from sce_fast.util.terminal import say

PICTURE = "accuracy.png"


@dataclass(frozen=True)
class Task:
    """A backbone and the images to train and test a classifier on."""

    source: Path  # run folder or exported file
    description: Description
    network: nn.Module
    train: ImageIndex
    test: ImageIndex
    view: EvaluationView  # of the test images
    origin: dict[str, Any]  # of the results, as JSON values

    @property
    def dim(self) -> int:
        """Width of the features."""
        return int(self.network.dim)  # type: ignore[arg-type]

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.train.listing.classes


def open_task(
    run: Path,
    train: Path | None,
    test: Path | None,
    *,
    classes: Path | None = None,
    network: ForeignNetwork | None,
    preset: Preset | None,
    size: int | None,
    resize: int | None,
    threads: int,
    ranks: Ranks,
) -> Task:
    """Return the backbone of a run or an exported file, and both sets of images; warn of images that are in both.

    Args:
        run: run folder, exported file or weights from elsewhere.
        network: of weights from elsewhere.
        train, test, classes: see chosen_sets.
        preset: gives size and resize where they are None; None if the backbone's own count.
        size: side of a test image's centre crop; by default the backbone's own.
        resize: shorter side of a test image; by default the backbone's own, or 8/7 of a size that is given.
        threads: number of threads that read files.
        ranks: every one has to make the call.

    Raises:
        FileNotFoundError, ValueError: as open_backbone, chosen_sets and labelled_indices; or the backbone takes clips.
    """
    run = Path(run)
    backbone = open_backbone(run, backbone=network)
    own = backbone.description.view()
    if isinstance(own, ClipEvaluationView):
        raise ValueError(f"{printable(run)} is a backbone of clips; expected one of images")
    if preset is not None:
        size, resize = preset.size if size is None else size, preset.resize if resize is None else resize
    crop = own.crop if size is None else size
    if resize is None:
        resize = own.resize if size is None else round(size * 8 / 7)
    view = dataclasses.replace(own, crop=crop, resize=resize)
    sets = chosen_sets(run, train, test, classes)
    indices = ranks.first_then_others(lambda: sets.indices(view, threads=threads))
    trains, tests = indices
    assert isinstance(trains, ImageIndex)
    assert isinstance(tests, ImageIndex)
    if ranks.is_first and (shared := shared_samples(trains, tests)):
        say(f"Warning: {warning(shared, len(tests), tests.kind)}")
    origin = {
        "source": str(run),
        "backbone": to_json(backbone.description),
        "train": {"path": str(sets.train), "images": len(trains), "fingerprint": trains.fingerprint},
        "test": {"path": str(sets.test), "images": len(tests), "fingerprint": tests.fingerprint},
        "classes": len(trains.listing.classes),
        "view": to_json(view),
        **sets.choice(),
    }
    return Task(run, backbone.description, backbone.network, trains, tests, view, origin)


def evaluated(
    setup: Setup, run: Path | None, out: Path | None, *, device: torch.device, ranks: Ranks, resume: bool
) -> EvaluationResult:
    """Train and test the classifiers of a setup; return the result after its table and picture are written.

    Raises:
        ValueError: there is no folder for results, or it holds others.
        Stopped, RuntimeError: as run_supervised.
    """
    folder = folder_of(run, out, setup, ranks=ranks, resume=resume)
    result = run_supervised(setup, folder, device=device, ranks=ranks, resume=resume)
    return finish(result, folder, draw_accuracies, ranks)


def folder_of(run: Path | None, out: Path | None, setup: Setup, *, ranks: Ranks, resume: bool) -> Path:
    """Return the folder for the results: `out`, or one beside the run.

    Raises:
        ValueError: there is neither.
    """
    if out is not None:
        return Path(out)
    if run is None:
        raise ValueError("feature files have no folder for results: give one with --out")
    described = setup.described()
    return Path(ranks.first(lambda: str(result_folder(Path(run), setup.evaluation, described, resume=resume))))


def preset_of(presets: dict[str, Preset], name: str, **given: Any) -> tuple[Preset, SupervisedSettings]:
    """Return a preset, and its settings with those that are given; None stands for a setting that is not given.

    Raises:
        ValueError, TypeError: the name is unknown, or a setting is out of range.
    """
    preset = pick("preset", name, presets)
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("schedule") == "cosine":
        changes.setdefault("milestones", ())  # those of the preset mean nothing here
    return preset, replaced(preset.settings, changes)


def draw_accuracies(result: EvaluationResult, folder: Path) -> Path:
    """Draw the top-1 accuracy of each head over the epochs, as accuracy.png in a folder; return its path."""
    lines = {
        f"learning rate {row['learning_rate']:g}": [(at["epoch"], at["top1"]) for at in row["history"]]
        for row in result.rows
    }
    return draw_lines(lines, folder / PICTURE, across="epoch", up="top-1")
