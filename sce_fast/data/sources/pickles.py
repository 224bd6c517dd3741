"""The Python version of CIFAR, read without running any code that a pickle may hold."""

import mmap
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sce_fast.util.files import printable

CIFAR_BYTES = 3 * 32 * 32


class _Array:
    """What stands for a numpy array while a pickle is read: its bytes, and nothing that runs."""

    def __init__(self, *arguments: object) -> None:
        self.content = b""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and state and isinstance(state[-1], bytes):
            self.content = state[-1]


class _Unpickler(pickle.Unpickler):
    """Builds numbers, text, lists and dicts, and _Array for the three names that CIFAR's arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if name in ("_reconstruct", "ndarray", "dtype") and module.partition(".")[0] == "numpy":
            return _Array
        raise pickle.UnpicklingError(f"{module}.{name} is not part of CIFAR")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("persistent objects are not part of CIFAR")


@dataclass(frozen=True)
class CifarPickle:
    """What a file of CIFAR's Python version holds."""

    pixels: int | None  # where the first image begins in the file; None without images
    labels: list[int]
    classes: list[str]


def read_cifar_pickle(path: Path) -> CifarPickle:
    """Return where the pixels of a batch are in its file, its labels, and the classes of a file of names.

    Raises:
        ValueError: the file is not such a pickle, or names something else than an array.
    """
    advice = "; the binary version, cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, holds the same images"
    try:
        with open(path, "rb") as file:
            values = _Unpickler(file, encoding="bytes").load()
    except Exception as error:  # damaged pickles raise errors of many types
        raise ValueError(f"{printable(path)} is not a batch of CIFAR: {error}{advice}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{printable(path)} is not a batch of CIFAR: it holds no dictionary{advice}")
    found = {_text(key): value for key, value in values.items()}
    classes = [_text(name) for name in found.get("fine_label_names", found.get("label_names", []))]
    data, labels = found.get("data"), found.get("fine_labels", found.get("labels"))
    if not isinstance(data, _Array) or not isinstance(labels, list):
        return CifarPickle(None, [], classes)
    if len(data.content) != CIFAR_BYTES * len(labels) or not labels:
        raise ValueError(f"{printable(path)} has {len(data.content)} bytes of pixels for {len(labels)} labels{advice}")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        pixels = content.find(data.content)
    if pixels < 0:
        raise ValueError(f"{printable(path)} does not hold its pixels in one piece{advice}")
    return CifarPickle(pixels, [int(label) for label in labels], classes)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
