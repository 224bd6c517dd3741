"""The evaluate commands knn and logistic: classifiers of frozen features of a run, an exported backbone, or files."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import Device
from sce_fast.distributed import process_group
from sce_fast.evaluate import Accuracy, knn_accuracy, logistic_accuracy, majority_accuracy
from sce_fast.evaluate.knn import check_votes
from sce_fast.evaluate.logistic import REGULARIZATIONS, check_fit
from sce_fast.evaluate.results import EvaluationResult, read_result, require_room
from sce_fast.export import Foreign
from sce_fast.tools.arguments import (
    ForeignWeights,
    OptionalClasses,
    OptionalFolder,
    OptionalImages,
    OptionalRun,
    PublishedVideos,
)
from sce_fast.tools.chosen_sets import PublishedSplit
from sce_fast.tools.frozen import finish, results_place
from sce_fast.tools.labelled_sets import LabelledSets, labelled_sets
from sce_fast.tools.pictures import draw_bars, draw_lines
from sce_fast.train.folder import choose_device
from sce_fast.util.terminal import progress_bar, say

NO_BASELINES = "no --baselines: raw pixels and an untrained network need the images; feature files hold only features"
BACKBONE, MAJORITY = "backbone", "majority class"  # names of rows
# Compared without a progress bar: pairs of a test and a train row, and numbers of the train features times classes.
FEW_PAIRS, FEW_NUMBERS = 10**8, 10**7


@dataclass(frozen=True)
class Row:
    """One accuracy: a row of the table and of the JSON file."""

    settings: dict[str, Any]
    accuracy: Accuracy
    notes: tuple[str, ...] = ()  # below the table
    features: str = BACKBONE

    def values(self) -> dict[str, Any]:
        return {"features": self.features, **self.settings, **asdict(self.accuracy)}


def knn(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    published: PublishedVideos = PublishedSplit(),  # noqa: B008 (frozen)
    classes: OptionalClasses = None,
    neighbours: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
    baselines: bool = False,
    foreign: ForeignWeights = Foreign(),  # noqa: B008 (frozen)
    features: OptionalFolder = None,
    batch_size: int | None = None,
    device: Device = "auto",
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Classify frozen features by weighted kNN and print a table of the accuracy for each number of neighbours.

    Runs under torchrun, where the ranks share the images.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere. Leave it out if train and test
            are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        published: A published split of videos.
        classes: Evaluate these classes of both sets: a list file of their names, one a line, or imagenet100. Default:
            all, or those that the run trains on if train and test are the run's own.
        neighbours: Numbers k of neighbours that vote, each of which is evaluated. A number above that of the train
            images is left out.
        temperature: Temperature T of the votes: a neighbour votes with weight exp(cosine / T).
        baselines: Also evaluate raw pixels and an untrained network of the same architecture.
        foreign: Weights from elsewhere.
        features: Folder in which features are kept and looked for, also those that a stopped evaluation has computed.
            Default: RUN/evaluations/features.
        batch_size: Samples per batch. Default: 256 images, or 16 videos.
        device: Device of the backbone and of kNN. auto takes a GPU if there is one.
        out: Folder for the results. Default: RUN/evaluations/knn; with feature files, nothing is written.
        resume: Go on with a stopped evaluation, or print the results that the folder holds already.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        Stopped: a signal asked to end while features were computed; finished parts are kept, and the exit status is 75.
        RuntimeError: an image cannot be decoded. The message names it.
    """
    check_votes(neighbours, temperature)

    def classify(some: LabelledSets) -> list[Row]:
        fitting = _fitting(neighbours, len(some.train_features))
        sets = some.to(choose_device(device))
        few = len(sets[0]) * len(sets[2]) <= FEW_PAIRS
        with progress_bar(len(sets[2]), "kNN", unit="sample", silent=few) as bar:
            found = knn_accuracy(*sets, neighbours=fitting, temperature=temperature, progress=bar.update)
        rows = [Row({"neighbours": k}, accuracy) for k, accuracy in zip(fitting, found, strict=True)]
        if left_out := [str(k) for k in neighbours if k not in fitting]:
            note = f"{', '.join(left_out)} neighbours are left out: there are only {len(sets[0])} train images"
            rows[-1] = dataclasses.replace(rows[-1], notes=(note,))
        return rows

    return _evaluate(
        "knn",
        f"kNN, temperature {temperature:g}",
        classify,
        {"neighbours": list(neighbours), "temperature": temperature, "baselines": baselines},
        (run, train, test),
        {
            "network": foreign,
            "published": published,
            "classes": classes,
            "features": features,
            "batch_size": batch_size,
            "device": device,
        },
        require=lambda images: _fitting(neighbours, images),
        draw=draw_knn,
        out=out,
        resume=resume,
    )


def logistic(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    published: PublishedVideos = PublishedSplit(),  # noqa: B008 (frozen)
    classes: OptionalClasses = None,
    regularization: tuple[float, ...] = REGULARIZATIONS,
    max_iterations: int = 1000,
    baselines: bool = False,
    foreign: ForeignWeights = Foreign(),  # noqa: B008 (frozen)
    features: OptionalFolder = None,
    batch_size: int | None = None,
    device: Device = "auto",
    out: OptionalFolder = None,
    resume: bool = False,
) -> EvaluationResult:
    """Classify frozen, standardised features of centre crops by logistic regression and print a table of the accuracy.

    The regression is fitted by L-BFGS with an L2 penalty. This is not the papers' linear evaluation, which trains by
    SGD on augmented images. Runs under torchrun, where the ranks share the images.

    Args:
        run: Run folder, a file written by sce-fast export, or weights from elsewhere. Leave it out if train and test
            are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        published: A published split of videos.
        classes: Evaluate these classes of both sets: a list file of their names, one a line, or imagenet100. Default:
            all, or those that the run trains on if train and test are the run's own.
        regularization: Inverse strength C of the penalty. Of several values, the best on a held-out fifth of each
            class of train is chosen and fitted again to all of train.
        max_iterations: Largest number of L-BFGS iterations.
        baselines: Also evaluate raw pixels and an untrained network of the same architecture.
        foreign: Weights from elsewhere.
        features: Folder in which features are kept and looked for, also those that a stopped evaluation has computed.
            Default: RUN/evaluations/features.
        batch_size: Samples per batch. Default: 256 images, or 16 videos.
        device: Device of the backbone. auto takes a GPU if there is one. The regression runs on the CPU.
        out: Folder for the results. Default: RUN/evaluations/logistic; with feature files, nothing is written.
        resume: Go on with a stopped evaluation, or print the results that the folder holds already.

    Raises:
        FileNotFoundError, ValueError, Stopped, RuntimeError: see knn.
    """
    check_fit(regularization, max_iterations)

    def classify(some: LabelledSets) -> list[Row]:
        few = some.train_features.numel() * len(some.train_labels.unique()) <= FEW_NUMBERS
        fits = len(regularization) + (len(regularization) > 1)
        options: dict[str, Any] = {"regularization": regularization, "max_iterations": max_iterations}
        with progress_bar(fits, "Logistic regression", unit="fit", silent=few) as bar:
            found = logistic_accuracy(*some.to(torch.device("cpu")), **options, progress=bar.update)
        chosen, notes = f"C {found.regularization:g}", []
        if found.held_out:
            scores = ", ".join(f"C {c:g}: {top1:.4f}" for c, top1 in found.held_out.items())
            notes.append(f"C chosen by top-1 on a held-out fifth of train: {scores}")
        if found.edge:
            beyond = "smaller" if found.edge == "smallest" else "larger"
            notes.append(
                f"Warning: {chosen} is the {found.edge} value tried; a {beyond} --regularization may be better"
            )
        if not found.converged:
            notes.append(f"not converged in {max_iterations} iterations: try more --max-iterations or a smaller C")
        settings = {
            "regularization": found.regularization,
            "regularization_at_edge": bool(found.edge),
            "converged": found.converged,
            "held_out_top1": {f"{c:g}": top1 for c, top1 in found.held_out.items()},
        }
        return [Row(settings, found.accuracy, tuple(notes))]

    return _evaluate(
        "logistic",
        "logistic regression",
        classify,
        {"regularization": list(regularization), "max_iterations": max_iterations, "baselines": baselines},
        (run, train, test),
        {
            "network": foreign,
            "published": published,
            "classes": classes,
            "features": features,
            "batch_size": batch_size,
            "device": device,
        },
        draw=draw_logistic,
        out=out,
        resume=resume,
    )


def draw_knn(result: EvaluationResult, folder: Path) -> Path:
    """Draw the top-1 accuracy over the number of neighbours, a line for each kind of features."""
    rows = [row for row in result.rows if row["features"] != MAJORITY]
    names = dict.fromkeys(row["features"] for row in rows)
    points = {name: [(row["neighbours"], row["top1"]) for row in rows if row["features"] == name] for name in names}
    return draw_lines(points, folder / "knn.png", across="neighbours", up="top-1")


def draw_logistic(result: EvaluationResult, folder: Path) -> Path:
    """Draw the top-1 accuracy of each kind of features."""
    return draw_bars({row["features"]: row["top1"] for row in result.rows}, folder / "logistic.png", along="top-1")


def _evaluate(
    evaluation: str,
    title: str,
    classify: Callable[[LabelledSets], list[Row]],
    settings: dict[str, Any],
    paths: tuple[Path | None, Path | None, Path | None],
    places: dict[str, Any],
    *,
    require: Callable[[int], object] = lambda train_images: None,
    draw: Callable[[EvaluationResult, Path], object],
    out: Path | None,
    resume: bool,
) -> EvaluationResult:
    """Compute features on all ranks, classify them on the first one, and write and print the result.

    A finished result is printed without any features.
    """
    run, out = None if paths[0] is None else Path(paths[0]), None if out is None else Path(out)
    require_room(out, resume=resume)
    with process_group(choose_device(places["device"])) as ranks:
        sets = labelled_sets(*paths, require=require, ranks=ranks, **places)
        settings, folder = {**sets.origin, **_counts(sets), **settings}, out
        found: dict[str, Any] = {}
        if (source := run or out) is not None:
            folder, rows = results_place(source, out, evaluation, settings, ranks=ranks, resume=resume)
            found = ranks.first(lambda: _finished(folder)) if rows else {}
        if not found:
            _ = sets.features  # computed by all ranks
            baselines = list(sets.baselines()) if settings["baselines"] else []
            found = ranks.first(lambda: _rows(sets, baselines, classify, wanted=settings["baselines"]))
        notes = list(dict.fromkeys([*sets.notes, *found["notes"]]))
        result = EvaluationResult(evaluation, settings, found["rows"], notes, f"{title}: {_sizes(sets)}")
        return finish(result, folder, draw, ranks)


def _finished(folder: Path | None) -> dict[str, Any]:
    result = None if folder is None else read_result(folder)
    assert result is not None
    return asdict(result)


def _rows(
    sets: LabelledSets,
    baselines: Sequence[tuple[str, LabelledSets]],
    classify: Callable[[LabelledSets], list[Row]],
    *,
    wanted: bool,
) -> dict[str, Any]:
    """Return the rows of the features, of the majority class and of the other baselines, and notes, as JSON values."""
    rows = classify(sets)
    rows.append(Row({}, majority_accuracy(sets.train_labels, sets.test_labels), features=MAJORITY))
    if wanted and sets.images is None:
        say(f"Warning: {NO_BASELINES}")
    for name, some in baselines:
        rows += [dataclasses.replace(row, features=name) for row in classify(some)]
    notes = [note if row.features == BACKBONE else f"{row.features}: {note}" for row in rows for note in row.notes]
    return {"rows": [row.values() for row in rows], "notes": list(dict.fromkeys(notes))}


def _fitting(neighbours: Sequence[int], train_images: int) -> list[int]:
    """Return the numbers of neighbours that there are.

    Raises:
        ValueError: all are too large.
    """
    fitting = [k for k in neighbours if k <= train_images]
    if not fitting:
        raise ValueError(
            f"neighbours={tuple(neighbours)}: expected numbers up to {train_images}, the number of train images"
        )
    return fitting


def _counts(sets: LabelledSets) -> dict[str, int]:
    return {
        "train_images": len(sets.train_labels),
        "test_images": len(sets.test_labels),
        "test_images_in_train": sets.shared,
        "classes": len(sets.train_labels.unique()),
        "dim": sets.dim,
    }


def _sizes(sets: LabelledSets) -> str:
    counts, shared = _counts(sets), f" ({sets.shared} of them in train)" if sets.shared else ""
    return (
        f"{counts['train_images']} train and {counts['test_images']} test images{shared}, {counts['classes']} classes, "
        f"features of {counts['dim']} numbers"
    )
