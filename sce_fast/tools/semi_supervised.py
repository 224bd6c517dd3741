"""The command evaluate semi-supervised: a backbone and a classifier are fine-tuned on a small labelled part."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from sce_fast.config import Device, default_loader_threads
from sce_fast.data.index import ImageIndex
from sce_fast.data.subset import subset
from sce_fast.distributed import process_group
from sce_fast.evaluate.results import EvaluationResult, require_room
from sce_fast.evaluate.semi_supervised import PRESETS, SHARES
from sce_fast.evaluate.supervised.images import Crop, image_batches
from sce_fast.export import ForeignNetwork, open_backbone
from sce_fast.tools.arguments import (
    ForeignNetworkWeights,
    OptionalClasses,
    OptionalFile,
    OptionalFolder,
    OptionalImages,
    Run,
)
from sce_fast.tools.chosen_sets import chosen_sets
from sce_fast.tools.supervised import Task, evaluated, image_view, open_task
from sce_fast.tools.training_options import Training, TrainingOptions
from sce_fast.train.folder import choose_device
from sce_fast.util.names import pick

Name = Literal["1%", "10%"]


def semi_supervised(
    run: Run,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    classes: OptionalClasses = None,
    preset: Name | None = None,
    share: float | None = None,
    per_class: int | None = None,
    files: OptionalFile = None,
    subset_seed: int = 0,
    learning_rate: float | None = None,
    backbone_learning_rate: float | None = None,
    batch_norm: Literal["sync", "local"] | None = None,
    crop: Literal["resized", "padded"] | None = None,
    size: int | None = None,
    resize: int | None = None,
    training: Training = TrainingOptions(),  # noqa: B008 (frozen)
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    loader_threads: int | None = None,
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Fine-tune a backbone with a linear classifier on a small labelled part of the train images; print a table.

    The part is a seeded share of each class, or the images that a list names. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere.
        train: Class folders, or a list file with classes; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        classes: Evaluate these classes of both sets: a list file of their names, one a line, or imagenet100. Default:
            all, or those that the run trains on if train and test are the run's own.
        preset: Settings of SwAV for 1 or 10 % of ImageNet, which options change, with the share of the images.
            Default: 10%, with the run's own image sizes.
        share: Share of the images of each class to train on. Default: that of the preset.
        per_class: Number of images of each class to train on, instead of a share.
        files: List of the file names to train on, instead of a share; such as SimCLR's lists 1percent.txt and
            10percent.txt for ImageNet.
        subset_seed: Seed of the choice of images.
        learning_rate: Base learning rate of the classifier, for a batch of 256.
        backbone_learning_rate: Base learning rate of the backbone, for a batch of 256.
        batch_norm: Rows that share batch statistics: sync, all ranks' rows; local, a rank's rows.
        crop: Train images: resized, a resized crop of 8 to 100 % of the area; padded, a crop of the image in a frame
            of four black pixels; both flipped at random.
        size: Side of the train crop and of the test image's centre crop, in pixels.
        resize: Shorter side of a test image before its centre crop, in pixels.
        training: How the classifier is trained.
        foreign: Weights from elsewhere.
        device: Device. auto takes a GPU if there is one.
        loader_threads: CPU threads of each rank that decode; by default the rank's share of the cores.
        out: Folder for the results. Default: RUN/evaluations/semi-supervised.
        resume: Go on with an evaluation that has begun in the folder.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        Stopped: a signal asked to end; the state is saved, and the exit status is 75.
        RuntimeError: an image cannot be decoded (the message names it), or a loss is not finite.
    """
    chosen = pick("preset", preset or "10%", PRESETS)
    settings = training.settings(
        chosen.settings,
        learning_rates=None if learning_rate is None else (learning_rate,),
        backbone_learning_rate=backbone_learning_rate,
        batch_norm=batch_norm,
    )
    run = Path(run)
    require_room(None if out is None else Path(out), resume=resume)
    threads, target = loader_threads or default_loader_threads(), choose_device(device)
    with process_group(target) as ranks:
        places: dict[str, Any] = {"threads": threads, "ranks": ranks}
        backbone = open_backbone(run, backbone=foreign)
        sizes: dict[str, Any] = {"preset": chosen if preset else None, "size": size, "resize": resize}
        view = image_view(run, backbone.description, **sizes)
        task = open_task(run, backbone, view, chosen_sets(run, train, test, classes), **places)
        if share is None and per_class is None and files is None:
            share = SHARES[preset or "10%"]
        task = _part(task, share=share, per_class=per_class, files=files, seed=subset_seed)
        shown: Crop = crop or chosen.crop
        assert isinstance(task.train, ImageIndex)
        assert isinstance(task.test, ImageIndex)
        batches = image_batches(task.train, task.test, task.view, settings, crop=shown, device=target, **places)
        setup = task.setup("semi-supervised", batches, settings, crop=shown)
        return evaluated(setup, run, out, device=target, ranks=ranks, resume=resume)


def _part(task: Task, **choice: Any) -> Task:
    """Return the task with a part of its train images.

    Raises:
        FileNotFoundError, ValueError: as subset.
    """
    train = subset(task.train, classes=None, **choice)
    if not len(train):
        raise ValueError("no train images are chosen; expected at least one")
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in choice.items()}
    part = {"images": len(train), "fingerprint": train.fingerprint, **chosen}
    return dataclasses.replace(task, train=train, origin={**task.origin, "part": part})
