"""The evaluate commands: kNN and logistic regression on features of a run, an exported backbone, or feature files."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import Device
from sce_fast.evaluate import Accuracy, knn_accuracy, logistic_accuracy, majority_accuracy
from sce_fast.evaluate.knn import check_votes
from sce_fast.evaluate.logistic import REGULARIZATIONS, check_fit
from sce_fast.tools.arguments import OptionalFile, OptionalImages, OptionalRun
from sce_fast.tools.labelled_sets import LabelledSets, labelled_sets
from sce_fast.train.folder import choose_device
from sce_fast.util.files import require_new, write_atomically
from sce_fast.util.terminal import say

NO_BASELINES = "no --baselines: raw pixels and an untrained network need the images; feature files hold only features"


@dataclass(frozen=True)
class Row:
    """One accuracy: a row of the table, and an entry of the JSON file."""

    name: str
    accuracy: Accuracy
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()  # below the table
    baseline: str = ""


def knn(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    neighbours: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
    baselines: bool = False,
    batch_size: int | None = None,
    device: Device = "auto",
    out: OptionalFile = None,
) -> str:
    """Classify frozen features by weighted kNN and return a table of the accuracy for each number of neighbours.

    Args:
        run: Run folder, or a file written by sce-fast export. Leave it out if train and test are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        neighbours: Numbers k of neighbours that vote, each of which is evaluated. A number above that of the train
            images is left out.
        temperature: Temperature T of the votes: a neighbour votes with weight exp(cosine / T).
        baselines: Also evaluate raw pixels and an untrained network of the same architecture.
        batch_size: Samples per batch. Default: 256 images, or 16 videos.
        device: Device of the backbone and of kNN. auto takes a GPU if there is one.
        out: New JSON file for the results.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        RuntimeError: an image cannot be decoded. The message names it.
    """
    require_new(out)
    check_votes(neighbours, temperature)
    sets = labelled_sets(
        run, train, test, batch_size=batch_size, device=device, require=lambda images: _fitting(neighbours, images)
    )
    fitting = _fitting(neighbours, len(sets.train_features))

    def classify(some: LabelledSets) -> list[Row]:
        found = knn_accuracy(*some.to(choose_device(device)), neighbours=fitting, temperature=temperature)
        return [
            Row(f"{k} neighbour{'' if k == 1 else 's'}", accuracy, {"neighbours": k, "temperature": temperature})
            for k, accuracy in zip(fitting, found, strict=True)
        ]

    notes = []
    if left_out := [str(k) for k in neighbours if k not in fitting]:
        images = len(sets.train_features)
        notes.append(f"{', '.join(left_out)} neighbours are left out: there are only {images} train images")
    rows = _all_rows(sets, classify, baselines)
    _write(out, "knn", sets, rows)
    return _report(f"kNN, temperature {temperature:g}", sets, rows, notes)


def logistic(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    regularization: tuple[float, ...] = REGULARIZATIONS,
    max_iterations: int = 1000,
    baselines: bool = False,
    batch_size: int | None = None,
    device: Device = "auto",
    out: OptionalFile = None,
) -> str:
    """Classify frozen, standardised features of centre crops by logistic regression and return a table of the accuracy.

    The regression is fitted by L-BFGS with an L2 penalty. This is not the papers' linear evaluation, which trains by
    SGD on augmented images.

    Args:
        run: Run folder, or a file written by sce-fast export. Leave it out if train and test are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        regularization: Inverse strength C of the penalty. Of several values, the best on a held-out fifth of each
            class of train is chosen and fitted again to all of train.
        max_iterations: Largest number of L-BFGS iterations.
        baselines: Also evaluate raw pixels and an untrained network of the same architecture.
        batch_size: Samples per batch. Default: 256 images, or 16 videos.
        device: Device of the backbone. auto takes a GPU if there is one. The regression runs on the CPU.
        out: New JSON file for the results.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see knn.
    """
    require_new(out)
    check_fit(regularization, max_iterations)
    sets = labelled_sets(run, train, test, batch_size=batch_size, device=device)

    def classify(some: LabelledSets) -> list[Row]:
        found = logistic_accuracy(
            *some.to(torch.device("cpu")), regularization=regularization, max_iterations=max_iterations
        )
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
            "held_out_top1": {f"{c:g}": top1 for c, top1 in found.held_out.items()},
            "converged": found.converged,
        }
        return [Row(chosen, found.accuracy, settings, tuple(notes))]

    rows = _all_rows(sets, classify, baselines)
    _write(out, "logistic", sets, rows)
    return _report("logistic regression", sets, rows)


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


def _all_rows(sets: LabelledSets, classify: Callable[[LabelledSets], list[Row]], baselines: bool) -> list[Row]:
    """Return the rows of the features, of the majority class and, if asked for, of the other baselines."""
    rows = classify(sets)
    majority = majority_accuracy(sets.train_labels, sets.test_labels)
    rows.append(Row("", majority, {}, baseline="majority class"))
    if baselines and sets.images is None:
        say(f"Warning: {NO_BASELINES}")
    for name, some in sets.baselines() if baselines else ():
        rows += [dataclasses.replace(row, baseline=name) for row in classify(some)]
    return rows


def _sizes(sets: LabelledSets) -> dict[str, int]:
    return {
        "train_images": len(sets.train_features),
        "test_images": len(sets.test_features),
        "test_images_in_train": sets.shared,
        "classes": len(sets.train_labels.unique()),
        "dim": sets.train_features.shape[1],
    }


def _write(out: Path | None, kind: str, sets: LabelledSets, rows: Sequence[Row]) -> None:
    if out is None:
        return
    results = [{**row.settings, **asdict(row.accuracy)} for row in rows if not row.baseline]
    others = [{"baseline": row.baseline, **row.settings, **asdict(row.accuracy)} for row in rows if row.baseline]
    values = {"evaluation": kind, **sets.origin, **_sizes(sets), "results": results, "baselines": others}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(values, indent=1) + "\n")


def _report(title: str, sets: LabelledSets, rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """Return the table of the accuracies, with the notes below it."""
    sizes, shared = _sizes(sets), f" ({sets.shared} of them in train)" if sets.shared else ""
    names = [", ".join(filter(None, [row.baseline, row.name])) for row in rows]
    width = max(24, *(len(name) + 2 for name in names))
    columns = ["top-1", *(["top-5"] if rows[0].accuracy.top5 is not None else []), "mean per class"]
    lines = [
        f"{sizes['train_images']} train and {sizes['test_images']} test images{shared}, {sizes['classes']} classes, "
        f"features of {sizes['dim']} numbers\n",
        f"{title:<{width}}" + "  ".join(f"{column:>6}" for column in columns),
    ]
    for name, row in zip(names, rows, strict=True):
        shares = [row.accuracy.top1, row.accuracy.top5, row.accuracy.mean_per_class]
        cells = [f"{share:.4f}" for share in shares if share is not None]
        lines.append(
            f"{name:<{width}}" + "  ".join(f"{c:>{max(6, len(t))}}" for c, t in zip(cells, columns, strict=True))
        )
    own_notes = [f"{row.baseline}: {note}" if row.baseline else note for row in rows for note in row.notes]
    below = [*own_notes, *notes]
    return "\n".join([*lines, *(["", *below] if below else [])])
