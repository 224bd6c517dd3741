"""CIFAR-10, CIFAR-100 and STL-10 as their authors publish them: records of pixels in a few files."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sce_fast.data.faults import CUT_SHARD, DAMAGED
from sce_fast.data.sources.packed import PIXELS, Form, Packed
from sce_fast.data.sources.pickles import read_cifar_pickle
from sce_fast.data.sources.scanned import Scanned

CIFAR_BYTES, STL_BYTES = (3 * PIXELS[form] ** 2 for form in (Form.CIFAR, Form.STL))
# Files that a folder must hold to be one of these data sets → its splits, the default one first.
LAYOUTS: dict[tuple[str, ...], dict[str, str]] = {
    ("data_batch_1.bin", "test_batch.bin"): {"train": r"data_batch_\d\.bin", "test": r"test_batch\.bin"},
    ("data_batch_1", "test_batch"): {"train": r"data_batch_\d", "test": "test_batch"},
    ("train.bin", "fine_label_names.txt"): {"train": r"train\.bin", "test": r"test\.bin"},
    ("train", "test", "meta"): {"train": "train", "test": "test"},
    ("train_X.bin", "test_X.bin"): {
        "unlabeled": r"unlabeled_X\.bin", "train": r"train_X\.bin", "test": r"test_X\.bin",
    },
}  # fmt: skip


def binary_splits(folder: Path) -> dict[str, list[str]]:
    """Return the files of each split of a folder that holds one of the data sets; nothing for other folders."""
    for marks, splits in LAYOUTS.items():
        # Other folders are not listed: they may hold millions of images.
        if all(os.path.isfile(os.path.join(folder, mark)) for mark in marks):
            names = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name)))
            found = {split: list(filter(re.compile(p).fullmatch, names)) for split, p in splits.items()}
            return {split: files for split, files in found.items() if files}
    return {}


def scan_binary(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Return the images of a file of CIFAR-10, CIFAR-100 or STL-10, and their classes.

    Args:
        path: of the file.
        name: of the file in the listing.
        stamp: its modification time and length.

    Raises:
        ValueError: the file is none of these.
    """
    if path.name.endswith("_X.bin"):
        return _scan_stl(path, name, stamp)
    if path.suffix == ".bin":
        return _scan_cifar(path, name, stamp)
    return _scan_cifar_pickle(path, name, stamp)


def _scan_cifar(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Read records of one label byte, or of two in CIFAR-100, and 3,072 bytes of pixels."""
    fine = path.name in ("train.bin", "test.bin")
    labels_first = 2 if fine else 1
    size = labels_first + CIFAR_BYTES
    count, rest = divmod(stamp[1], size)
    offsets = np.arange(count, dtype=np.int64) * size + labels_first
    records = np.fromfile(path, dtype=np.uint8, count=count * size).reshape(count, size)
    labels = records[:, labels_first - 1].astype(np.int32)
    classes = _names(path.parent, ("fine_label_names.txt",) if fine else ("batches.meta.txt",))
    return _scanned(name, stamp, offsets, Form.CIFAR, labels, classes, CUT_SHARD if rest else None)


def _scan_cifar_pickle(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    found = read_cifar_pickle(path)
    if found.pixels is None:
        return _scanned(name, stamp, np.zeros(0, np.int64), Form.CIFAR, np.zeros(0, np.int32), [], DAMAGED)
    meta = path.parent / ("meta" if path.name in ("train", "test") else "batches.meta")
    classes = read_cifar_pickle(meta).classes if meta.exists() else []
    offsets = found.pixels + np.arange(len(found.labels), dtype=np.int64) * CIFAR_BYTES
    return _scanned(name, stamp, offsets, Form.CIFAR, np.array(found.labels, dtype=np.int32), classes, None)


def _scan_stl(path: Path, name: str, stamp: tuple[int, int]) -> Scanned:
    """Read records of 27,648 bytes; classes are in another file, numbered from 1."""
    count, rest = divmod(stamp[1], STL_BYTES)
    labels = np.full(count, -1, dtype=np.int32)
    beside = path.with_name(path.name.replace("_X.bin", "_y.bin"))
    if beside.exists():
        numbers = np.fromfile(beside, dtype=np.uint8).astype(np.int32) - 1
        if len(numbers) != count and not rest:
            raise ValueError(f"{beside} has {len(numbers)} labels; expected the {count} of {path}")
        labels = numbers[:count]
    offsets = np.arange(count, dtype=np.int64) * STL_BYTES
    classes = _names(path.parent, ("class_names.txt",))
    return _scanned(name, stamp, offsets, Form.STL, labels, classes, CUT_SHARD if rest else None)


def _scanned(
    name: str,
    stamp: tuple[int, int],
    offsets: NDArray[np.int64],
    form: Form,
    labels: NDArray[np.int32],
    classes: Sequence[str],
    fault: str | None,
) -> Scanned:
    n = len(offsets)
    packed = Packed(
        files=(name,),
        stamps=np.array([stamp], dtype=np.int64),
        shard=np.zeros(n, dtype=np.int32),
        offset=offsets,
        length=np.full(n, 3 * PIXELS[form] ** 2, dtype=np.uint32),
        form=np.full(n, form, dtype=np.uint8),
        row=np.arange(n, dtype=np.int32),
    )
    highest = int(labels.max(initial=-1))
    if highest >= len(classes):  # without the file of names, classes are numbers
        classes = [str(number) for number in range(highest + 1)]
    return Scanned(packed, labels, tuple(classes), {} if fault is None else {name: fault})


def _names(folder: Path, candidates: tuple[str, ...]) -> list[str]:
    for name in candidates:
        if (folder / name).exists():
            return [line.strip() for line in (folder / name).read_text(errors="replace").splitlines() if line.strip()]
    return []
