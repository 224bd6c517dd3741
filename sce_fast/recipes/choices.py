"""What the recipes for anyone's data share: settings that are chosen around the given ones, and their description."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from sce_fast.config import TrainConfig
from sce_fast.util.files import printable

SECTIONS = ("subset", "clips", "views", "model", "loss", "optimizer", "evaluation")
QUEUE = 4096 / 50_000  # keys per sample, as in the CIFAR10 run


class Choices:
    """Settings by name, with sections as dicts. What is given stays; what is chosen fills the rest.

    Args:
        given: settings, with sections as dicts or dataclasses.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.settings: dict[str, Any] = {name: _fields(value) for name, value in given.items()}

    def choose(self, section: str, **chosen: Any) -> None:
        """Choose settings of a section."""
        self.settings[section] = {**chosen, **self.settings.get(section, {})}

    def section(self, name: str) -> dict[str, Any]:
        """Return the settings of a section that are given or chosen so far."""
        return self.settings.get(name, {})

    def are_usable(self) -> bool:
        """Return whether the settings that others follow have their types; TrainConfig says what is wrong."""
        if not all(isinstance(self.section(name), Mapping) for name in SECTIONS):
            return False
        counts = [self.settings.get("epochs", 1), self.settings.get("batch_size", 1)]
        counts += [*as_tuple(self.section("views").get("sizes", 1)), self.section("model").get("key_views", 2)]
        return all(isinstance(count, int) and count >= 1 for count in counts)

    def choose_queue(self, longest: int) -> None:
        """Choose a queue of whole steps with at most so many keys, but at least one step, for the chosen batch."""
        model = self.section("model")
        keys = self.settings["batch_size"] * (model.get("key_views", 2) if model.get("symmetric", True) else 1)
        self.choose("loss", queue_size=max(longest // keys, 1) * keys)

    def choose_small(self, samples: int) -> None:
        """Choose optimizer, teacher, heads and temperature for a small data set, as in the papers' CIFAR10 run."""
        steps = self.settings["epochs"] * (samples // self.settings["batch_size"])
        self.choose("optimizer", name="sgd", base_learning_rate=0.24, weight_decay=5e-4)
        self.choose("model", momentum=_momentum(steps), momentum_schedule="constant")
        self.choose(
            "model", symmetric=False, predictor_hidden=0, projector_norm="hidden", projector_hidden=(512,), dim=128
        )
        self.choose("loss", target_temperature=0.05)

    def choose_transformer(self) -> None:
        """Choose the learning rate and the weight decay of adamw, if it is given."""
        if self.section("optimizer").get("name") == "adamw":
            self.choose("optimizer", base_learning_rate=5e-4, weight_decay=0.05)


def small_batch(samples: int) -> int:
    """Return the largest power of two, up to 256, that gives at least 40 steps an epoch; at least 8 if there are 8."""
    return next((size for size in (256, 128, 64, 32, 16) if 40 * size <= samples), min(8, samples))


def as_tuple(sizes: Any) -> tuple[int, ...]:
    """Return one value or a list of values as a tuple."""
    return tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)


def description(found: str, source: str, config: TrainConfig, *, gpu: bool) -> str:
    """Return two lines about what a recipe has found and chosen."""
    where, model, sizes = "a GPU" if gpu else "a CPU", config.model, "/".join(map(str, config.views.sizes))
    views = f"views of {sizes} pixels"
    if sampling := config.clips.sampling():
        length = f"{sampling.seconds:g} s" if sampling.stride is None else f"every {sampling.stride} frames"
        views = f"clips of {sampling.frames} frames ({length}) of {sizes} pixels"
    return (
        f"Found {found}, in {printable(config.data)}; to train on {where}, the recipe takes {source}:\n"
        f"  {model.backbone} of width {model.width}, {views}, batch {config.batch_size}, queue "
        f"{config.loss.queue_size} in {config.loss.queue_dtype}, {config.optimizer.name}, warm-up of "
        f"{config.optimizer.warmup_epochs:g} of {config.epochs} epochs, teacher momentum {model.momentum:g}. "
        "Options override them."
    )


def _momentum(steps: int) -> float:
    """Return m such that the teacher averages over 3% of the run, but over 10 to 100 steps."""
    return round(1 - 1 / min(max(0.03 * steps, 10), 100), 4)


def _fields(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
