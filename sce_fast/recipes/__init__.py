"""Settings that are known to work, as functions that return a config."""

from collections.abc import Callable

from sce_fast.config import TrainConfig
from sce_fast.recipes.demo import demo
from sce_fast.recipes.folder import folder

RECIPES: dict[str, Callable[..., TrainConfig]] = {"folder": folder, "demo": demo}
