"""The evaluate commands: kNN and a linear probe on features of a run, an exported backbone, or feature files."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sce_fast.config import Device, EvaluationConfig, default_loader_threads
from sce_fast.evaluate import (
    Accuracy,
    extract_features,
    knn_accuracy,
    labelled_indices,
    load_features,
    logistic_accuracy,
)
from sce_fast.evaluate.class_labels import labels_among
from sce_fast.evaluate.knn import check_votes
from sce_fast.evaluate.logistic import REGULARIZATIONS, check_fit
from sce_fast.export import open_backbone
from sce_fast.tools.arguments import OptionalFile, OptionalImages, OptionalRun
from sce_fast.train.folder import choose_device, read_config
from sce_fast.util.files import printable, require_new, write_atomically


@dataclass(frozen=True)
class LabelledSets:
    """Features and labels for a classifier, and where they come from."""

    train_features: Tensor  # (n, F)
    train_labels: Tensor  # (n,)
    test_features: Tensor  # (m, F)
    test_labels: Tensor  # (m,), numbered as in train
    origin: dict[str, Any]  # for the JSON file of the results

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels on a device, in the order of the fields."""
        sets = (self.train_features, self.train_labels, self.test_features, self.test_labels)
        return tuple(tensor.to(device) for tensor in sets)  # type: ignore[return-value]


def knn(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    neighbours: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
    batch_size: int = 256,
    device: Device = "auto",
    out: OptionalFile = None,
) -> str:
    """Classify frozen features by weighted kNN and return a table of the accuracy for each number of neighbours.

    Args:
        run: Run folder, or a file written by sce-fast export. Leave it out if train and test are feature files.
        train: Class folders, a list file with classes, or a feature file of sce-fast embed; by default the run's own.
        test: Images to classify, in the same forms; by default the run's own.
        neighbours: Numbers k of neighbours that vote, each of which is evaluated.
        temperature: Temperature T of the votes: a neighbour votes with weight exp(cosine / T).
        batch_size: Images per batch.
        device: Device of the backbone and of kNN. auto takes a GPU if there is one.
        out: New JSON file for the results.

    Raises:
        FileNotFoundError: a file, folder or checkpoint does not exist.
        ValueError: an option is wrong, labels are missing, or train and test do not fit together.
        RuntimeError: an image cannot be decoded. The message names it.
    """
    require_new(out)
    check_votes(neighbours, temperature)
    sets = labelled_sets(run, train, test, batch_size=batch_size, device=device)
    accuracies = knn_accuracy(*sets.to(choose_device(device)), neighbours=neighbours, temperature=temperature)
    results = [
        {"neighbours": k, "temperature": temperature, **dataclasses.asdict(accuracy)}
        for k, accuracy in zip(neighbours, accuracies, strict=True)
    ]
    _write(out, "knn", sets, results)
    rows = [(f"{k} neighbours", accuracy) for k, accuracy in zip(neighbours, accuracies, strict=True)]
    return _table(f"kNN, temperature {temperature:g}", sets, rows)


def linear(
    run: OptionalRun = None,
    /,
    *,
    train: OptionalImages = None,
    test: OptionalImages = None,
    regularization: tuple[float, ...] = REGULARIZATIONS,
    max_iterations: int = 1000,
    batch_size: int = 256,
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
        batch_size: Images per batch.
        device: Device of the backbone. auto takes a GPU if there is one. The regression runs on the CPU.
        out: New JSON file for the results.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: see knn.
    """
    require_new(out)
    check_fit(regularization, max_iterations)
    sets = labelled_sets(run, train, test, batch_size=batch_size, device=device)
    on_cpu = sets.to(torch.device("cpu"))
    found = logistic_accuracy(*on_cpu, regularization=regularization, max_iterations=max_iterations)
    result = {
        "regularization": found.regularization,
        "held_out_top1": {f"{c:g}": top1 for c, top1 in found.held_out.items()},
        "converged": found.converged,
        **dataclasses.asdict(found.accuracy),
    }
    _write(out, "linear", sets, [result])
    lines = [_table("logistic regression", sets, [(f"C {found.regularization:g}", found.accuracy)])]
    if found.held_out:
        scores = ", ".join(f"C {c:g}: {top1:.4f}" for c, top1 in found.held_out.items())
        lines.append(f"C chosen by top-1 on a held-out fifth of train: {scores}")
    if not found.converged:
        lines.append(f"not converged in {max_iterations} iterations: try more --max-iterations or a smaller C")
    return "\n".join(lines)


def labelled_sets(
    source: Path | None, train: Path | None, test: Path | None, *, batch_size: int, device: str
) -> LabelledSets:
    """Return features and labels of both sets, computed from images or read from feature files."""
    source, train, test = (None if path is None else Path(path) for path in (source, train, test))
    target = choose_device(device)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if (train is None) != (test is None):
        raise ValueError(f"train={train}, test={test}: expected both or neither")
    if source is None:
        if train is None or test is None:
            raise ValueError(
                "nothing to evaluate: give a run or an exported backbone, or two feature files as --train and --test"
            )
        return _from_files(train, test)
    if train is None or test is None:
        own = read_config(source).evaluation if source.is_dir() else EvaluationConfig()
        train, test = own.train, own.test
        if train is None or test is None:
            raise ValueError(f"{printable(source)} names no evaluation folders: give --train and --test")
    for path in (train, test):
        if path.is_file() and path.suffix == ".safetensors":
            raise ValueError(f"{printable(path)} holds features already: leave out {printable(source)}")
    return _from_images(source, train, test, batch_size=batch_size, device=target)


def _from_images(source: Path, train: Path, test: Path, *, batch_size: int, device: torch.device) -> LabelledSets:
    threads = default_loader_threads()
    backbone = open_backbone(source)
    indices = labelled_indices(train, test, threads=threads)
    network, view = backbone.network.to(device), backbone.description.view()
    features = [
        extract_features(network, index, view, device=device, batch_size=batch_size, threads=threads)
        for index in indices
    ]
    for path, rows in zip((train, test), features, strict=True):
        _require_finite(rows, path)
    labels = [torch.as_tensor(index.labels) for index in indices]
    origin = {
        "source": str(source),
        "backbone": dataclasses.asdict(backbone.description),
        "train": str(train),
        "test": str(test),
    }
    return LabelledSets(features[0], labels[0], features[1], labels[1], origin)


def _from_files(train: Path, test: Path) -> LabelledSets:
    for path in (train, test):
        if path.is_dir():
            raise ValueError(
                f"{printable(path)} is a folder of images; also give the run or exported backbone to compute features"
            )
    files = [load_features(path) for path in (train, test)]
    for path, file in zip((train, test), files, strict=True):
        if file.labels is None or not file.classes:
            raise ValueError(f"{printable(path)} has no labels; embed class folders, or a list file with classes")
        _require_finite(file.features, path)
    first, second = files
    assert first.labels is not None
    assert second.labels is not None
    if first.features.shape[1] != second.features.shape[1]:
        raise ValueError(
            f"{printable(train)} has features of {first.features.shape[1]} numbers, {printable(test)} of "
            f"{second.features.shape[1]}; expected features of the same backbone"
        )
    labels = labels_among(
        first.classes, second.labels, second.classes, train_name=printable(train), test_name=printable(test)
    )
    origin = {"source": None, "train": str(train), "test": str(test)}
    return LabelledSets(first.features.float(), first.labels, second.features.float(), labels, origin)


def _require_finite(features: Tensor, path: Path) -> None:
    bad = int((~features.isfinite().all(1)).sum())
    if bad:
        raise ValueError(f"{printable(path)}: {bad} of {len(features)} feature rows are not finite")


def _sizes(sets: LabelledSets) -> dict[str, int]:
    return {
        "train_images": len(sets.train_features),
        "test_images": len(sets.test_features),
        "classes": len(sets.train_labels.unique()),
        "dim": sets.train_features.shape[1],
    }


def _write(out: Path | None, kind: str, sets: LabelledSets, results: list[dict[str, Any]]) -> None:
    if out is None:
        return
    values = {"evaluation": kind, **sets.origin, **_sizes(sets), "results": results}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(values, indent=1) + "\n")


def _table(title: str, sets: LabelledSets, rows: list[tuple[str, Accuracy]]) -> str:
    sizes = _sizes(sets)
    with_top5 = rows[0][1].top5 is not None
    lines = [
        f"{sizes['train_images']} train and {sizes['test_images']} test images, {sizes['classes']} classes, features "
        f"of {sizes['dim']} numbers\n",
        f"{title:<24}{'top-1':>8}" + (f"{'top-5':>8}" if with_top5 else ""),
    ]
    lines += [f"{name:<24}{a.top1:>8.4f}" + (f"{a.top5:>8.4f}" if a.top5 is not None else "") for name, a in rows]
    return "\n".join(lines)
