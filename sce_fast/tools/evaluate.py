"""kNN and a linear probe on the features of a run, of an exported backbone, or of feature files."""

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
from sce_fast.evaluate.logistic import REGULARIZATIONS
from sce_fast.export import open_backbone
from sce_fast.train.folder import choose_device, read_config
from sce_fast.util.files import printable, require_new, write_atomically


@dataclass(frozen=True)
class LabelledSets:
    """What the classifiers take, and what is told of it."""

    train_features: Tensor  # (n, F)
    train_labels: Tensor  # (n,)
    test_features: Tensor  # (m, F)
    test_labels: Tensor  # (m,), numbered as in train
    origin: dict[str, Any]

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sets = (self.train_features, self.train_labels, self.test_features, self.test_labels)
        return tuple(tensor.to(device) for tensor in sets)  # type: ignore[return-value]


def knn(
    run: Path | None = None,
    /,
    *,
    train: Path | None = None,
    test: Path | None = None,
    neighbours: tuple[int, ...] = (10, 20, 100, 200),
    temperature: float = 0.07,
    batch_size: int = 256,
    device: Device = "auto",
    out: Path | None = None,
) -> str:
    """Weighted kNN on frozen features: a table of the accuracy for each number of neighbours.

    Args:
        run: Run folder, or a file that sce-fast export has written; none for feature files.
        train: Labelled images (class folders or a list file), or a feature file of sce-fast embed; by default
            the run's own evaluation folder.
        test: The same, of what is classified.
        neighbours: How many vote; several are evaluated at once.
        temperature: A neighbour votes with exp(cosine / temperature).
        batch_size: Images at a time.
        device: auto takes the GPU when there is one.
        out: JSON file for the results, which must not exist.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: bad options, sets without labels or that do not fit together,
            bad image files.
    """
    require_new(out)
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
    run: Path | None = None,
    /,
    *,
    train: Path | None = None,
    test: Path | None = None,
    regularization: tuple[float, ...] = REGULARIZATIONS,
    max_iterations: int = 1000,
    batch_size: int = 256,
    device: Device = "auto",
    out: Path | None = None,
) -> str:
    """Logistic regression (L-BFGS, L2) on frozen, standardised features of centre crops: a table of its accuracy.

    This is not the papers' linear evaluation, which trains by SGD on augmented images.

    Args:
        run: Run folder, or a file that sce-fast export has written; none for feature files.
        train: Labelled images (class folders or a list file), or a feature file of sce-fast embed; by default
            the run's own evaluation folder.
        test: The same, of what is classified.
        regularization: C, the inverse strength of the penalty. Of several the best on a held-out fifth of each
            class of train is taken and fitted again to all of train.
        max_iterations: Of L-BFGS.
        batch_size: Images at a time.
        device: Of the backbone; auto takes the GPU when there is one. The regression runs on the CPU.
        out: JSON file for the results, which must not exist.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as knn.
    """
    require_new(out)
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
        lines.append(f"chosen on a held-out fifth of train, top-1 there: {scores}")
    if not found.converged:
        lines.append(f"not converged in {max_iterations} iterations: more of them, or a smaller C, may change it")
    return "\n".join(lines)


def labelled_sets(
    source: Path | None, train: Path | None, test: Path | None, *, batch_size: int, device: str
) -> LabelledSets:
    """Features and labels of both sets, whether they have to be made first or are in files."""
    if (train is None) != (test is None):
        raise ValueError(f"train={train}, test={test}: expected both or neither")
    if source is None:
        if train is None or test is None:
            raise ValueError("nothing to evaluate: give a run or an exported backbone, or two feature files as train "
                             "and test")  # fmt: skip
        return _from_files(train, test)
    if train is None or test is None:
        own = read_config(source).evaluation if source.is_dir() else EvaluationConfig()
        train, test = own.train, own.test
        if train is None or test is None:
            raise ValueError(f"{printable(source)} names no evaluation folders: give --train and --test")
    for path in (train, test):
        if path.is_file() and path.suffix == ".safetensors":
            raise ValueError(f"{printable(path)} holds features already: leave out {printable(source)}")
    return _from_images(source, train, test, batch_size=batch_size, device=choose_device(device))


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
                f"{printable(path)} is a folder: give the run or exported backbone that makes features of its images"
            )
    files = [load_features(path) for path in (train, test)]
    for path, file in zip((train, test), files, strict=True):
        if file.labels is None or not file.classes:
            raise ValueError(f"{printable(path)} has no labels; embed one folder a class, or a list file with classes")
        _require_finite(file.features, path)
    first, second = files
    assert first.labels is not None
    assert second.labels is not None
    if first.features.shape[1] != second.features.shape[1]:
        raise ValueError(
            f"{printable(train)} has {first.features.shape[1]} numbers a row, {printable(test)} "
            f"{second.features.shape[1]}: they are not of the same backbone"
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
