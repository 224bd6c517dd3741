"""Changes of a recipe's settings."""

from collections.abc import Mapping
from typing import Any

from sce_fast.config import TrainConfig, replace
from sce_fast.recipes.device import queue_dtype


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """Return a recipe's config with other settings, as config.replace does, and with settings that must follow them.

    The warm-up takes at most half of the epochs, and the queue's dtype follows the device, unless the changes set them.
    A stride of clips replaces their seconds.

    Raises:
        ValueError, TypeError: see config.replace.
    """
    epochs, optimizer = changes.get("epochs"), changes.get("optimizer", {})
    if isinstance(epochs, int) and epochs >= 1 and isinstance(optimizer, Mapping):
        warmup = min(config.optimizer.warmup_epochs, epochs / 2)
        changes = {**changes, "optimizer": {"warmup_epochs": warmup, **optimizer}}
    loss = changes.get("loss", {})
    if isinstance(loss, Mapping):
        dtype = queue_dtype(changes.get("device", config.device))
        changes = {**changes, "loss": {"queue_dtype": dtype, **loss}}
    clips = changes.get("clips", {})
    if isinstance(clips, Mapping) and clips.get("stride") is not None:
        changes = {**changes, "clips": {"seconds": None, **clips}}
    return replace(config, **changes)
