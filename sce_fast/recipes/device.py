"""The device that a recipe's settings are for."""

from collections.abc import Mapping
from typing import Any, Literal


def has_gpu(device: object) -> bool:
    """Return whether a run with this `device` setting trains on a GPU."""
    import torch

    return device != "cpu" and torch.cuda.is_available()


def published_precision(changes: Mapping[str, Any]) -> Literal["float16", "float32"]:
    """Return the precision of the published runs, float16, for a run on a GPU; on a CPU it is slower than float32.

    Args:
        changes: of a recipe's settings, for the device.
    """
    return "float16" if has_gpu(changes.get("device", "auto")) else "float32"
