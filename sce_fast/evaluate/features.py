"""Features of a frozen backbone, and feature files. Importing this module loads no DALI."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import Index
from sce_fast.data.kinds import evaluation_inputs
from sce_fast.data.sources import Names
from sce_fast.util.files import printable, save_tensors

BATCH = {"images": 256, "videos": 16}
ROWS_AT_ONCE = 2**15


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    index: Index,
    view: EvaluationView,
    *,
    device: torch.device,
    batch_size: int | None = None,
    threads: int = 2,
    skipped: dict[int, str] | None = None,
    progress: Callable[[int], object] = lambda samples: None,
) -> Tensor:
    """Return features (n, F) float32 on the CPU in the order of the index. The backbone runs in eval mode.

    Features of a video are the mean over its clips and crops.

    Args:
        batch_size: images or videos at a time; by default BATCH of their kind.
        skipped: if given, bad files are left out, and added here as sample → reason.
        progress: called with the number of samples of each batch.

    Raises:
        ValueError, BadFilesError: as evaluation_batches.
    """
    was_training, dtype = backbone.training, next(backbone.parameters()).dtype
    backbone.eval()
    batches = evaluation_inputs(
        index,
        view,
        batch_size=BATCH[index.kind] if batch_size is None else batch_size,
        threads=threads,
        device="gpu" if device.type == "cuda" else "cpu",
        skipped=skipped,
    )
    features, done = torch.empty(0), 0
    try:
        for inputs in batches:  # (N, views, 3, …)
            views = backbone(inputs.flatten(0, 1).to(device, dtype)).float()
            batch = views.unflatten(0, inputs.shape[:2]).mean(1)
            if done == 0:  # allocated once: joining a list would hold the features twice
                features = torch.empty(len(index), batch.shape[1])
            features[done : done + len(batch)] = batch
            done += len(batch)
            progress(len(batch))
    finally:  # after a bad file or a signal, a network that trains on must not stay in eval mode
        backbone.train(was_training)
        batches.close()
    return features[:done]


def pixel_features(index: Index, view: EvaluationView, *, threads: int = 2) -> Tensor:
    """Return the normalised pixels of each sample in one row (n, P), a baseline for the features of a network."""
    return torch.cat([inputs.flatten(1) for inputs in evaluation_inputs(index, view, threads=threads)])


def bad_rows(features: Tensor) -> int:
    """Return how many rows of features (n, F) are not finite, with little further memory."""
    return sum(int((~rows.isfinite().all(1)).sum()) for rows in features.split(ROWS_AT_ONCE))


@dataclass(frozen=True)
class FeatureFile:
    """The content of a feature file."""

    features: Tensor  # (n, F)
    names: list[str]  # Listing.entries(): relative to the root of the data, as os.fsdecode returns them
    labels: Tensor | None  # (n,)
    classes: list[str]


def save_features(path: Path, features: Tensor, index: Index) -> None:
    """Write a safetensors file with features (n, F), labels (n,) if known, and file names; see name_tensors."""
    tensors = {"features": features.contiguous(), **name_tensors(index.listing.entries())}
    if index.labels is not None:
        tensors["labels"] = torch.from_numpy(index.labels)
    classes = [printable(name) for name in index.listing.classes]
    save_tensors(path, tensors, {"classes": json.dumps(classes)})


def load_features(path: str | Path) -> FeatureFile:
    """Read a feature file that save_features has written.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a safetensors file, or its features, names, labels and classes do not fit together.

    Example:
        >>> file = load_features("features_photos.safetensors")
        >>> features_of = dict(zip(file.names, file.features, strict=True))  # name → (F,)
    """
    tensors, names, metadata = read_named_features(path, "sce-fast embed")
    labels, classes = tensors.get("labels"), json.loads(metadata.get("classes", "[]"))
    if labels is not None:
        _require_labels(labels, len(names), len(classes), path)
    return FeatureFile(tensors["features"], names, labels, classes)


def name_tensors(names: Sequence[str]) -> dict[str, Tensor]:
    """Return the names of rows as tensors of a feature file.

    Names need not be UTF-8, so they are stored as bytes: name i is names[name_ends[i − 1]:name_ends[i]].
    """
    own = names if isinstance(names, Names) else Names.of(names)
    return {"names": torch.from_numpy(own.text), "name_ends": torch.from_numpy(own.ends)}


def read_named_features(
    path: str | Path, writer: str, further: Collection[str] = ()
) -> tuple[dict[str, Tensor], list[str], dict[str, str]]:
    """Return the tensors of a feature file, the names of its rows, and its metadata.

    Args:
        path: of the file.
        writer: command that writes such files, for the message.
        further: tensors that it has beside features and names.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a safetensors file, a tensor is missing, or features and names do not fit together.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{printable(path)} is not a feature file: {error}") from error
    lacking = {"features", "names", "name_ends", *further} - tensors.keys()
    if lacking:
        missing = ", ".join(sorted(lacking))
        raise ValueError(f"{printable(path)} is not a feature file of {writer}: it lacks {missing}")
    names = list(Names(tensors["names"].numpy(), tensors["name_ends"].numpy()))
    features = tensors["features"]
    if features.dim() != 2 or len(features) != len(names):
        raise ValueError(
            f"{printable(path)}: features have the shape {tuple(features.shape)}, expected ({len(names)}, F)"
        )
    return tensors, names, metadata


def _require_labels(labels: Tensor, rows: int, classes: int, path: str | Path) -> None:
    if labels.is_floating_point() or labels.shape != (rows,):
        raise ValueError(
            f"{printable(path)}: labels are {labels.dtype} {tuple(labels.shape)}, expected int64 ({rows},)"
        )
    if rows and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"{printable(path)}: labels go from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        )
