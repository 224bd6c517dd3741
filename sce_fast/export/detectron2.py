"""A ResNet for detectron2: a pickle of numpy arrays, whose names are those of detectron2's own ResNet.

The file holds what MoCo's conversion of its pretrained networks holds: "model", "__author__", "matching_heuristics".
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

COUNTER = ".num_batches_tracked"  # which detectron2's normalisations lack
# What the pickle of a numpy array names, in numpy 1 and 2.
ARRAYS = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype")}


def renamed(name: str) -> str:
    """Return detectron2's name for a parameter or buffer of a ResNet.

    Example:
        >>> renamed("layer1.0.downsample.1.running_mean"), renamed("bn1.weight")
        ('res2.0.shortcut.norm.running_mean', 'stem.conv1.norm.weight')
    """
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"\bbn(\d)\b", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write the tensors of a ResNet under detectron2's names, and metadata beside them."""
    arrays = {renamed(name): t.float().numpy() for name, t in tensors.items() if not name.endswith(COUNTER)}
    content = {"model": arrays, "__author__": "sce_fast", "matching_heuristics": True, **metadata}
    with path.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def read(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that write has written, under the names of a ResNet.

    Args:
        expected: parameters and buffers of the ResNet; its counters of batches are taken from here.

    Raises:
        pickle.UnpicklingError: the file names anything but numpy arrays. It is not called.
    """
    with path.open("rb") as file:
        arrays: dict[str, np.ndarray] = _ArraysOnly(file).load()["model"]
    return {
        name: t.cpu() if name.endswith(COUNTER) else torch.from_numpy(arrays[renamed(name)])
        for name, t in expected.items()
    }


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays and plain values, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name} is no numpy array")
        return super().find_class(module, name)
