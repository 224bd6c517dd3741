"""The device that a recipe's settings are for."""

from collections.abc import Mapping
from typing import Any, Literal


def has_gpu(device: object) -> bool:
    """Return whether a run with this `device` setting trains on a GPU."""
    import torch

    return device != "cpu" and torch.cuda.is_available()


def queue_dtype(device: object) -> Literal["bfloat16", "float32"]:
    """Return the dtype of a recipe's queue for a run with this `device` setting: bfloat16 on a GPU, float32 on a CPU.

    A GPU multiplies float32 keys many times slower. docs/loss.md has the costs, and the error of a bfloat16 queue.
    """
    return "bfloat16" if has_gpu(device) else "float32"


def published_precision(changes: Mapping[str, Any]) -> Literal["float16", "float32"]:
    """Return the precision of the published runs, float16, for a run on a GPU; on a CPU it is slower than float32.

    Args:
        changes: of a recipe's settings, for the device.
    """
    return "float16" if has_gpu(changes.get("device", "auto")) else "float32"
