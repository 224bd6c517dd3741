"""Recipes: functions that return a training config known to work."""

from collections.abc import Callable

from sce_fast.config import TrainConfig
from sce_fast.recipes.demo import demo
from sce_fast.recipes.folder import folder

RECIPES: dict[str, Callable[..., TrainConfig]] = {"folder": folder, "demo": demo}
