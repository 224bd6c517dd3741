"""Recipes: functions that return a training config known to work."""

from collections.abc import Callable

from sce_fast.config import TrainConfig
from sce_fast.recipes import imagenet, imagenet100, kinetics, small_images
from sce_fast.recipes.demo import demo
from sce_fast.recipes.demo_video import demo_video
from sce_fast.recipes.folder import folder
from sce_fast.recipes.videos import videos

RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "folder": folder,
    "videos": videos,
    "demo": demo,
    "demo-video": demo_video,
    "cifar10": small_images.cifar10,
    "cifar100": small_images.cifar100,
    "stl10": small_images.stl10,
    "tiny-imagenet": small_images.tiny_imagenet,
    "imagenet100": imagenet100.imagenet100,
    "imagenet100-infonce": imagenet100.imagenet100_infonce,
    "imagenet100-ressl": imagenet100.imagenet100_ressl,
    "imagenet-asymmetric": imagenet100.imagenet_asymmetric,
    "imagenet-100-epochs": imagenet.imagenet_100_epochs,
    "imagenet-200-epochs": imagenet.imagenet_200_epochs,
    "imagenet-300-epochs": imagenet.imagenet_300_epochs,
    "imagenet-1000-epochs": imagenet.imagenet_1000_epochs,
    "imagenet-multi-crop": imagenet.imagenet_multi_crop,
    "imagenet-dino-crops": imagenet.imagenet_dino_crops,
    "imagenet-moco-v3": imagenet.imagenet_moco_v3,
    "imagenet-vit-small": imagenet.imagenet_vit_small,
    "imagenet-vit-base": imagenet.imagenet_vit_base,
    "kinetics200-r3d18-baseline": kinetics.kinetics200_r3d18_baseline,
    "kinetics200-r3d18": kinetics.kinetics200_r3d18,
    "kinetics200-r3d18-small": kinetics.kinetics200_r3d18_small,
    "kinetics400-r3d18": kinetics.kinetics400_r3d18,
    "kinetics400-r3d18-small": kinetics.kinetics400_r3d18_small,
    "kinetics400-r3d50": kinetics.kinetics400_r3d50,
    "kinetics400-r3d50-16": kinetics.kinetics400_r3d50_16,
}
