"""A folder of photographs, on one machine."""

from pathlib import Path
from typing import Any, cast

from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.recipes.changes import changed


def folder(data: str | Path, out: str | Path = "runs/folder", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on 224-pixel views α and β, symmetrically, with batches that fit on one GPU.

    The settings are those of the papers' ImageNet pretraining, with a smaller batch and a smaller queue.

    Args:
        data: Folder of images, or a list file that names images.
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
    return changed(config, changes)
