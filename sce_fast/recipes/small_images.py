"""The papers' pretraining on CIFAR-10, CIFAR-100, STL-10 and Tiny-ImageNet (Denize et al., WACV 2023).

The settings of CIFAR-10 are those of the official configuration (github.com/CEA-LIST/SCE, resnet18_cifar10). There is
none for the other data sets: a recipe marks what is not verified. The published results are those of the paper's table
of baselines, which nobody has checked here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig, replace
from sce_fast.recipes.changes import changed
from sce_fast.recipes.device import published_precision

Channels = tuple[float, float, float]
# Mean and standard deviation of the channels, from the official code.
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)
STL10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(data: str | Path, out: str | Path = "runs/cifar10", **changes: Any) -> TrainConfig:
    """Train a ResNet-18 on CIFAR-10 with a weak view for the keys and a strong view for the queries.

    Published, but unverified here: 90.34% top-1 of the linear classifier. The run took one GPU.

    Args:
        data: Folder of images, or a list file that names images.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.

    Example:
        >>> cifar10("cifar10/train", epochs=100, loss={"coefficient": 0.4})
    """
    return _small(data, out, changes, channels=CIFAR10)


def cifar100(data: str | Path, out: str | Path = "runs/cifar100", **changes: Any) -> TrainConfig:
    """Train a ResNet-18 on CIFAR-100 with the settings of CIFAR-10.

    Unverified: all settings but the mean and standard deviation of the channels. Published, but unverified here: 65.45%
    top-1 of the linear classifier.

    Args:
        data, out, changes: See cifar10.
    """
    return _small(data, out, changes, channels=CIFAR100)


def stl10(data: str | Path, out: str | Path = "runs/stl10", **changes: Any) -> TrainConfig:
    """Train a ResNet-18 on the images of STL-10, those without labels included.

    Unverified: all settings but the mean and standard deviation of the channels. They are those of CIFAR-10, with a
    teacher momentum of 0.996, a queue of 16,384 keys, and views of 96 pixels. Published, but unverified here: 89.94%
    top-1 of the linear classifier.

    Args:
        data, out, changes: See cifar10.
    """
    return _small(data, out, changes, channels=STL10, size=96, momentum=0.996, queue_size=16384)


def tiny_imagenet(data: str | Path, out: str | Path = "runs/tiny-imagenet", **changes: Any) -> TrainConfig:
    """Train a ResNet-18 on the 200 classes of Tiny-ImageNet.

    Unverified: all settings. They are those of CIFAR-10, with a teacher momentum of 0.996, a queue of 16,384 keys,
    views of 64 pixels, and the mean and standard deviation of ImageNet. Published, but unverified here: 51.90% top-1 of
    the linear classifier.

    Args:
        data, out, changes: See cifar10.
    """
    return _small(data, out, changes, channels=IMAGENET, size=64, momentum=0.996, queue_size=16384)


def _small(
    data: str | Path,
    out: str | Path,
    changes: Mapping[str, Any],
    *,
    channels: tuple[Channels, Channels],
    size: int = 32,
    momentum: float = 0.99,
    queue_size: int = 4096,
) -> TrainConfig:
    """Return the config of a recipe with other settings; all recipes share what is no argument here.

    Images are as small as the views, so that evaluations see them whole and not enlarged.
    """
    mean, std = channels
    config = TrainConfig(
        data=cast(Path, data),  # which may be a string: the config converts it, unless it is empty
        out=cast(Path, out),
        epochs=200,
        batch_size=256,
        precision=published_precision(changes),
        views=ViewsConfig(names=("weak", "strong"), sizes=(size,), scales=((0.2, 1.0),), mean=mean, std=std),
        model=ModelConfig(
            backbone="resnet18",
            small_input=True,
            projector_hidden=(512,),
            dim=128,
            projector_norm="hidden",
            predictor_hidden=0,
            symmetric=False,
            momentum=momentum,
            momentum_schedule="constant",
            batch_norm="shuffle",
            batch_norm_groups=8,
        ),
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=0.5, queue_size=queue_size),
        optimizer=OptimizerConfig(
            name="sgd", base_learning_rate=0.06, momentum=0.9, weight_decay=5e-4, warmup_epochs=5
        ),
    )
    config = changed(config, changes)
    side, evaluation = max(config.views.sizes), config.evaluation
    crop = evaluation.crop or side
    return replace(config, evaluation={"resize": evaluation.resize or max(side, crop), "crop": crop})
