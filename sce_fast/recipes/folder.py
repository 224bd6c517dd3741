"""A folder of images, on one machine, with settings that follow the images."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np

from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig, replace
from sce_fast.config.subset import SubsetConfig
from sce_fast.data.index import index_images, read_headers
from sce_fast.data.sources import find_shards, list_images
from sce_fast.recipes.adapt import LARGE, Found, adapted
from sce_fast.recipes.changes import changed
from sce_fast.recipes.choices import description
from sce_fast.recipes.device import has_gpu
from sce_fast.util.terminal import say

SAMPLED = 256  # images whose size is read


def folder(data: str | Path, out: str | Path = "runs/folder", **changes: Any) -> TrainConfig:
    """Train on a folder of images with settings that adapt to their number and size and to the device.

    From 100,000 images on, they are those of the papers' ImageNet pretraining, with a smaller batch and a smaller
    queue: a ResNet-50 on 224-pixel views α and β. Fewer images get a smaller network, smaller views, a shorter queue,
    SGD, and a teacher that follows faster. Two lines on standard error say what was found and chosen. Options override
    the choice, and the others follow them. Without images, the settings are those of the papers.

    Args:
        data: Folder of images, a list file that names them, or tar shards, Parquet tables, CIFAR or STL-10.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.

    Example:
        >>> folder("photos", epochs=3, views={"sizes": 96}, loss={"temperature": 0.2})
    """
    config = TrainConfig(
        data=cast(Path, data),  # which may be a string: the config converts it, unless it is empty
        out=cast(Path, out),
        epochs=100,
        batch_size=256,
        views=ViewsConfig(names=("alpha", "beta"), sizes=(224,)),
        model=ModelConfig(backbone="resnet50", projector_hidden=(4096, 4096), dim=256, predictor_hidden=4096),
        loss=LossConfig(temperature=0.1, target_temperature=0.07, coefficient=0.5, queue_size=16384),
        optimizer=OptimizerConfig(name="lars", base_learning_rate=0.6, weight_decay=1e-6, warmup_epochs=10),
    )
    part = replace(config, subset=changes["subset"]).subset if "subset" in changes else config.subset
    found = survey(config.data, part)
    gpu = has_gpu(changes.get("device", config.device))
    config = changed(config, adapted(found or Found(LARGE, 224), changes, gpu=gpu))
    if found is not None and int(os.environ.get("RANK", 0)) == 0:
        source = "the papers' ImageNet settings" if found.images >= LARGE else "settings for a small data set"
        what = f"{found.images:,} images, median shorter side {found.side} pixels"
        say(description(what, source, config, gpu=gpu))
    return config


def survey(data: Path, subset: SubsetConfig) -> Found | None:
    """Return the number of images and the median of the shorter sides of some; None if there are no readable images.

    Training names what is wrong with the data.

    Args:
        data: of the run.
        subset: part of the data that the run trains on.
    """
    try:
        if subset != SubsetConfig() or find_shards(data) is not None:
            sides = subset.of(index_images(data)).sizes.min(axis=1)
            count = len(sides)
        else:
            listing = list_images(data)
            count = len(listing.names)
            samples = np.unique(np.linspace(0, count - 1, min(SAMPLED, count)).astype(int)).tolist()
            sides = read_headers([os.fsencode(listing.path(i)) for i in samples])[0].min(axis=1)
    except (OSError, ValueError, ImportError):
        return None
    sides = sides[sides > 0]
    return Found(count, int(np.median(sides))) if len(sides) else None
