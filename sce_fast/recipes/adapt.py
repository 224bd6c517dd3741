"""The settings of the recipe `folder` as a function of the images found, the given settings and the device.

From LARGE images on, the settings are those of the papers' ImageNet pretraining. Fewer images get those of their
CIFAR10 run: a weak view for the keys, a strong view for the queries, SGD. Sizes follow the images. docs/training.md has
the table.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

LARGE = 100_000  # images
QUEUE = 4096 / 50_000  # keys an image, as in the CIFAR10 run
RESNETS = ("resnet18", "resnet34", "resnet50")
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
    settings: dict[str, Any] = {name: _fields(value) for name, value in given.items()}
    if not _are_usable(settings):
        return settings

    def choose(section: str, **chosen: Any) -> None:
        settings[section] = {**chosen, **settings.get(section, {})}

    large = found.images >= LARGE
    epochs = settings.setdefault("epochs", 100)
    batch = settings.setdefault("batch_size", 256 if large else _batch(found.images))
    choose("optimizer", warmup_epochs=min(10, epochs / 10))
    if settings["optimizer"].get("name") == "adamw":
        choose("optimizer", base_learning_rate=5e-4, weight_decay=0.05)
    if not large:
        choose("optimizer", name="sgd", base_learning_rate=0.24, weight_decay=5e-4)
        choose("views", names=("weak", "strong"), sizes=(_view(found.side, gpu=gpu),))
        size = max(_tuple(settings["views"]["sizes"]))
        choose("model", momentum=_momentum(epochs * (found.images // batch)), momentum_schedule="constant")
        choose("model", symmetric=False, predictor_hidden=0, projector_norm="hidden", projector_hidden=(512,), dim=128)
        choose("model", **_backbone(settings["model"].get("backbone"), size, gpu=gpu))
        if size < 224 and settings["model"]["backbone"] in RESNETS:  # others may take images of the views' size only
            whole = min(max(found.side, size), round(size / CROP))
            choose("evaluation", resize=whole, crop=whole)
        choose("loss", target_temperature=0.05)
    model = settings.get("model", {})
    keys = batch * (model.get("key_views", 2) if model.get("symmetric", True) else 1)
    longest = 16384 if large else int(QUEUE * found.images)
    choose("loss", queue_size=max(longest // keys, 1) * keys)
    return settings


def _fields(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def _are_usable(settings: Mapping[str, Any]) -> bool:
    """Return whether the settings that others follow have their types; TrainConfig says what is wrong."""
    counts = [settings.get("epochs", 1), settings.get("batch_size", 1)]
    sections = [settings.get(name, {}) for name in ("views", "model", "loss", "optimizer", "evaluation")]
    if not all(isinstance(section, Mapping) for section in sections):
        return False
    counts += [*_tuple(sections[0].get("sizes", 1)), sections[1].get("key_views", 2)]
    return all(isinstance(count, int) and count >= 1 for count in counts)


def _batch(images: int) -> int:
    """Return the largest power of two, up to 256, that gives at least 40 steps an epoch; at least 8 if there are 8."""
    return next((size for size in (256, 128, 64, 32, 16) if 40 * size <= images), min(8, images))


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


def _momentum(steps: int) -> float:
    """Return m such that the teacher averages over 3% of the run, but over 10 to 100 steps."""
    return round(1 - 1 / min(max(0.03 * steps, 10), 100), 4)


def _tuple(sizes: Any) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)
