"""The settings of the recipe `folder` as a function of the images found, the given settings and the device.

From LARGE images on, the settings are those of the papers' ImageNet pretraining. Fewer images get those of their
CIFAR10 run: a weak view for the keys, a strong view for the queries, SGD. Sizes follow the images. docs/training.md has
the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sce_fast.backbones import RESNETS
from sce_fast.recipes.choices import QUEUE, Choices, as_tuple, small_batch

LARGE = 100_000  # images
CROP = 3 / 4  # mean side of a crop of 0.2 to 1.0 of an image's area, as a share of the image's side


@dataclass(frozen=True)
class Found:
    """What a folder or list file holds."""

    images: int
    side: int  # median of the images' shorter sides in pixels


def adapted(found: Found, given: Mapping[str, Any], *, gpu: bool) -> dict[str, Any]:
    """Return all settings that differ from the papers' ImageNet pretraining: the given ones, and chosen ones.

    Args:
        found: the images.
        given: settings that stay, with sections (model, loss …) as dicts or dataclasses. The chosen settings follow
            them: the warm-up follows the epochs, for example.
        gpu: whether the run trains on a GPU, which affords a larger network.

    Returns:
        settings by name, with sections as dicts.

    Example:
        >>> adapted(Found(images=3000, side=64), {"epochs": 50}, gpu=False)["loss"]
        {'target_temperature': 0.05, 'queue_size': 192}
    """
    choices = Choices(given)
    settings, large = choices.settings, found.images >= LARGE
    if not choices.are_usable():
        return settings
    epochs = settings.setdefault("epochs", 100)
    settings.setdefault("batch_size", 256 if large else small_batch(found.images))
    choices.choose("optimizer", warmup_epochs=min(10, epochs / 10))
    choices.choose_transformer()
    if not large:
        choices.choose("views", names=("weak", "strong"), sizes=(_view(found.side, gpu=gpu),))
        choices.choose_small(found.images)
        size = max(as_tuple(choices.section("views")["sizes"]))
        choices.choose("model", **_backbone(choices.section("model").get("backbone"), size, gpu=gpu))
        if size < 224 and choices.section("model")["backbone"] in RESNETS:  # others may take the views' size only
            whole = min(max(found.side, size), round(size / CROP))
            choices.choose("evaluation", resize=whole, crop=whole)
    choices.choose_queue(16384 if large else int(QUEUE * found.images))
    return settings


def _view(side: int, *, gpu: bool) -> int:
    """Return the size of the views: that of the average crop, so that crops are not enlarged."""
    return min(max(16 * round(CROP * side / 16), 32), 224 if gpu else 96)


def _backbone(given: str | None, size: int, *, gpu: bool) -> dict[str, Any]:
    """Return the network for views of this size; a given one keeps its own width."""
    small = size <= (64 if gpu else 32)
    if given is not None:
        return {"small_input": small and given in RESNETS}
    if gpu:
        return {"backbone": "resnet18" if small else "resnet50", "small_input": small}
    # These cost about the same: the small stem keeps 16 times as many pixels.
    return {"backbone": "resnet18", "small_input": small, "width": 16 if small else 32}
