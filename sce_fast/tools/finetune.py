"""The command evaluate finetune: a backbone of clips and a classifier are trained together on labelled videos."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from sce_fast.config import Device, default_loader_threads
from sce_fast.data.video.augment import ClipEvaluationView
from sce_fast.distributed import Ranks, process_group
from sce_fast.evaluate.finetune import PRESETS, mean_over_splits
from sce_fast.evaluate.results import EvaluationResult, finished_rows, require_room
from sce_fast.evaluate.supervised.run import Setup, run_supervised
from sce_fast.evaluate.supervised.videos import ClipCrop
from sce_fast.export import Backbone, ForeignNetwork, open_backbone
from sce_fast.tools.arguments import (
    ForeignNetworkWeights,
    OptionalClasses,
    OptionalFile,
    OptionalFolder,
    OptionalImages,
    Run,
)
from sce_fast.tools.chosen_sets import ChosenSets, PublishedSplit, chosen_sets
from sce_fast.tools.clip_options import ClipOptions, TrainingClips, clip_views, video_setup
from sce_fast.tools.frozen import finish
from sce_fast.tools.pictures import draw_lines
from sce_fast.tools.supervised import PICTURE, evaluated, folder_of, open_task
from sce_fast.tools.training_options import Training, TrainingOptions
from sce_fast.train.folder import choose_device
from sce_fast.util.files import printable
from sce_fast.util.names import pick
from sce_fast.util.terminal import say

EVALUATION = "finetune"
OF_ONE_SPLIT = ("train", "test", "split_number", "missing_train", "missing_test")  # settings that differ between splits
Name = Literal["ucf101", "hmdb51", "ucf101-small", "hmdb51-small", "something-something"]


def finetune(
    run: Run,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    split: OptionalFile = None,
    videos: OptionalFolder = None,
    split_numbers: tuple[int, ...] | None = None,
    classes: OptionalClasses = None,
    preset: Name | None = None,
    learning_rate: float | None = None,
    backbone_learning_rate: float | None = None,
    dropout: float | None = None,
    batch_norm: Literal["sync", "local"] | None = None,
    crop: ClipCrop | None = None,
    size: int | None = None,
    resize: int | None = None,
    clips: TrainingClips = ClipOptions(),  # noqa: B008 (frozen)
    training: Training = TrainingOptions(),  # noqa: B008 (frozen)
    foreign: ForeignNetworkWeights = ForeignNetwork(),  # noqa: B008 (frozen)
    device: Device = "auto",
    loader_threads: int | None = None,
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Fine-tune a backbone of clips with a linear classifier on labelled videos, as the papers do; print a table.

    With several splits, each is trained on anew, and the table also has their mean. Runs under torchrun.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere.
        train: Class folders, or a list file with classes; by default the run's own.
        test: Videos to classify, in the same forms; by default the run's own.
        split: Published split instead of train and test: a folder of UCF101's or HMDB51's lists, of
            Something-Something's JSON files, or of the CSV tables of Kinetics.
        videos: Folder of the split's videos.
        split_numbers: Numbers of the splits of UCF101 or HMDB51. Default: those of the preset, which are 1, 2 and 3 for
            UCF101 and HMDB51; without a preset 1.
        classes: Evaluate these classes of both sets: a list file of their names, one a line. Default: all, or those
            that the run trains on if train and test are the run's own.
        preset: Published settings, which options change: ucf101 or hmdb51 (or -small for clips of 16 frames of 112
            pixels), or something-something. Default: ucf101, with the run's own sizes.
        learning_rate: Base learning rate of all layers, for a batch of 256.
        backbone_learning_rate: Base learning rate of the backbone, if the classifier has another one.
        dropout: Share of the features that a training step sets to 0 before the classifier.
        batch_norm: Rows that share batch statistics: sync, all ranks' rows; local, a rank's rows.
        crop: Train clips: scaled, a crop of frames whose shorter side is random; resized, a resized crop of 8 to 100 %
            of the area.
        size: Side of the train crop in pixels.
        resize: Shorter side of the frames of a test video, in pixels.
        clips: How clips look.
        training: How the classifier is trained.
        foreign: Weights from elsewhere.
        device: Device. auto takes a GPU if there is one.
        loader_threads: CPU threads of each rank that decode; by default the rank's share of the cores.
        out: Folder for the results. Default: RUN/evaluations/finetune.
        resume: Go on with an evaluation that has begun in the folder.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        Stopped: a signal asked to end; the state is saved, and the exit status is 75.
        RuntimeError: a video cannot be decoded (the message names it), or a loss is not finite.
    """
    chosen = pick("preset", preset or "ucf101", PRESETS)
    settings = training.settings(
        chosen.settings,
        learning_rates=None if learning_rate is None else (learning_rate,),
        backbone_learning_rate=learning_rate if backbone_learning_rate is None else backbone_learning_rate,
        dropout=dropout,
        batch_norm=batch_norm,
    )
    run, target = Path(run), choose_device(device)
    require_room(None if out is None else Path(out), resume=resume)
    numbers = _numbers(split, split_numbers, chosen.splits if preset else (1,))
    threads = loader_threads or default_loader_threads()
    with process_group(target) as ranks:
        backbone = open_backbone(run, backbone=foreign)
        own = backbone.description.view()
        if not isinstance(own, ClipEvaluationView):
            raise ValueError(
                f"{printable(run)} is a backbone of images; expected one of clips. evaluate semi-supervised --share 1 "
                "fine-tunes it"
            )
        sizes: dict[str, Any] = {"crop": crop, "size": size, "resize": resize}
        views = clip_views(run, own, chosen, clips, named=preset is not None, **sizes)
        view = views.test_view(own)
        places: dict[str, Any] = {"device": target, "ranks": ranks, "threads": threads}

        def setup_of(sets: ChosenSets) -> Setup:
            fresh = Backbone(copy.deepcopy(backbone.network), backbone.description)  # training changes it
            task = open_task(run, fresh, view, sets, threads=threads, ranks=ranks)
            return video_setup(EVALUATION, task, view, views, settings, places)

        published = [PublishedSplit(split=split, videos=videos, split_number=number) for number in numbers]
        setups = [setup_of(chosen_sets(run, train, test, classes, published=part)) for part in published]
        if len(setups) == 1:
            return evaluated(setups[0], run, out, device=target, ranks=ranks, resume=resume)
        return _over_splits(numbers, setups, run, out, ranks=ranks, device=target, resume=resume)


def _numbers(split: Path | None, given: tuple[int, ...] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of the splits to train on.

    Raises:
        ValueError: numbers are given without a split, or one twice.
    """
    if split is None:
        if given is not None:
            raise ValueError(f"split_numbers={given}: expected none without --split")
        return (1,)
    numbers = default if given is None else given
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"split_numbers={numbers}: expected one or more numbers, none twice")
    return numbers


def _over_splits(
    numbers: Sequence[int],
    setups: Sequence[Setup],
    run: Path,
    out: Path | None,
    *,
    ranks: Ranks,
    resume: bool,
    **how: Any,
) -> EvaluationResult:
    """Train on each split, in folders split1, split2, …; return the result with the mean, after it is written."""
    described = [setup.described() for setup in setups]
    settings = {
        name: [own[name] for own in described] if name in OF_ONE_SPLIT else value
        for name, value in described[0].items()
    }
    folder = folder_of(run, out, EVALUATION, settings, ranks=ranks, resume=resume)
    ranks.first(lambda: finished_rows(folder, EVALUATION, settings, resume=resume))
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for number, setup in zip(numbers, setups, strict=True):
        if ranks.is_first:
            say(f"Split {number}:")
        found = run_supervised(setup, folder / f"split{number}", ranks=ranks, resume=resume, **how)
        rows += [{"split": str(number), **row} for row in found.rows]
        notes += found.notes
    rows.append(mean_over_splits(rows))
    result = EvaluationResult(EVALUATION, settings, rows, list(dict.fromkeys(notes)))
    return finish(result, folder, draw_splits, ranks)


def draw_splits(result: EvaluationResult, folder: Path) -> Path:
    """Draw the top-1 accuracy on each split over the epochs, as accuracy.png in a folder; return its path."""
    lines = {
        f"split {row['split']}": [(at["epoch"], at["top1"]) for at in row["history"]]
        for row in result.rows
        if "history" in row
    }
    return draw_lines(lines, folder / PICTURE, across="epoch", up="top-1")
