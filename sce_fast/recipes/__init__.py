"""Recipes: functions that return a training config known to work."""

from collections.abc import Callable

from sce_fast.config import TrainConfig
from sce_fast.recipes import kinetics
from sce_fast.recipes.demo import demo
from sce_fast.recipes.demo_video import demo_video
from sce_fast.recipes.folder import folder
from sce_fast.recipes.videos import videos

RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "folder": folder,
    "videos": videos,
    "demo": demo,
    "demo-video": demo_video,
    "kinetics200-r3d18-baseline": kinetics.kinetics200_r3d18_baseline,
    "kinetics200-r3d18": kinetics.kinetics200_r3d18,
    "kinetics200-r3d18-small": kinetics.kinetics200_r3d18_small,
    "kinetics400-r3d18": kinetics.kinetics400_r3d18,
    "kinetics400-r3d18-small": kinetics.kinetics400_r3d18_small,
    "kinetics400-r3d50": kinetics.kinetics400_r3d50,
    "kinetics400-r3d50-16": kinetics.kinetics400_r3d50_16,
}
