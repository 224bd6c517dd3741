"""The papers' pretraining on ImageNet (Denize et al., WACV 2023), and relatives of it.

Settings of SCE's own recipes are those of the official configurations (github.com/CEA-LIST/SCE and its successor
github.com/juliendenize/eztorch), published results those of their README files. All recipes have batches of 4,096
images on several GPUs; batch statistics are shared by all ranks, and precision is float16 on a GPU.

The two repositories differ in two settings for two crops. The first one has a projector of 2048 → 2048 → 256 and flips
the first view only. These recipes follow the second one: 4096 → 4096 → 256, and both views are flipped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.recipes.changes import changed
from sce_fast.recipes.device import published_precision

TWO_CROPS: Mapping[str, Any] = {"names": ("alpha", "beta"), "sizes": (224,), "scales": ((0.2, 1.0),)}
MULTI_CROP: Mapping[str, Any] = {
    "names": ("alpha", "beta", "gamma", "gamma", "gamma", "gamma"),
    "sizes": (224, 224, 192, 160, 128, 96),
    "scales": ((0.2, 1.0), (0.2, 1.0), (0.172, 0.86), (0.143, 0.715), (0.114, 0.571), (0.086, 0.429)),
}
DINO_CROPS: Mapping[str, Any] = {
    "names": ("alpha", "beta", *["gamma"] * 8),
    "sizes": (224, 224, *[96] * 8),
    "scales": ((0.14, 1.0), (0.14, 1.0), *[(0.05, 0.14)] * 8),
}


def imagenet_100_epochs(data: str | Path, out: str | Path = "runs/imagenet-100-epochs", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on two views of ImageNet for 100 epochs, at twice the learning rate of the longer runs.

    Published: 72.1% top-1 of the linear classifier. The run took 8 A100 GPUs.

    Args:
        data: Folder of images, or a list file that names images.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.

    Example:
        >>> imagenet_100_epochs("imagenet/train", batch_size=1024, precision="bfloat16")
    """
    return _imagenet(data, out, changes, epochs=100, optimizer={"base_learning_rate": 0.6})


def imagenet_200_epochs(data: str | Path, out: str | Path = "runs/imagenet-200-epochs", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on two views of ImageNet for 200 epochs.

    Published: 72.7% top-1 of the linear classifier. The run took 8 A100 GPUs.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _imagenet(data, out, changes, epochs=200)


def imagenet_300_epochs(data: str | Path, out: str | Path = "runs/imagenet-300-epochs", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on two views of ImageNet for 300 epochs.

    Published: 73.3% top-1 of the linear classifier. The run took 8 A100 GPUs.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _imagenet(data, out, changes, epochs=300)


def imagenet_1000_epochs(
    data: str | Path, out: str | Path = "runs/imagenet-1000-epochs", **changes: Any
) -> TrainConfig:
    """Train a ResNet-50 on two views of ImageNet for 1000 epochs, with a higher weight decay.

    Published: 74.1% top-1 of the linear classifier. The run took 8 A100 GPUs.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _imagenet(data, out, changes, epochs=1000, optimizer={"weight_decay": 1.5e-6})


def imagenet_multi_crop(data: str | Path, out: str | Path = "runs/imagenet-multi-crop", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on six views of ImageNet, 2 × 224 + 192 + 160 + 128 + 96 pixels, for 200 epochs.

    The two large views are the keys, so that the loss has ten terms. Each view passes through the networks alone.
    Published: 75.4% top-1 of the linear classifier. The run took 16 A100 GPUs.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _imagenet(data, out, changes, epochs=200, views=MULTI_CROP)


def imagenet_dino_crops(data: str | Path, out: str | Path = "runs/imagenet-dino-crops", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on ten views of ImageNet like DINO's, 2 × 224 + 8 × 96 pixels, for 200 epochs.

    The loss has 18 terms. Views of one size pass through the networks together, as DINO's do. Unverified: there is no
    published run of SCE with these views. Their sizes and scales are those of eztorch's crops for transformers.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _imagenet(data, out, changes, epochs=200, views=DINO_CROPS, model={"mutual_pass": True})


def imagenet_moco_v3(data: str | Path, out: str | Path = "runs/imagenet-moco-v3", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on ImageNet like MoCo v3: InfoNCE over the keys of the batch, without a queue, 100 epochs.

    Settings are those of github.com/facebookresearch/moco-v3, CONFIG.md and the defaults of main_moco.py: a base
    learning rate of 0.6 for 100 epochs. (An early README had 0.45, without a result.) Its loss is 4 times the
    mean of the two terms, which LARS's scaling cancels for all weights but those of normalisations. Its blocks start
    as the identity, ours do not. Published by MoCo v3: 68.9% top-1 of the linear classifier. The authors train 300 and
    1000 epochs with a base learning rate of 0.3, and 1000 with a momentum of 0.996 and a weight decay of 1.5e-6: 72.8%
    and 74.6%.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    model = {"projector_hidden": (4096,), "predictor_norm": "all"}
    loss = {"temperature": 1.0, "coefficient": 1.0, "queue_size": 0, "batch_keys": True}
    return _imagenet(data, out, changes, epochs=100, model=model, loss=loss, optimizer={"base_learning_rate": 0.6})


def imagenet_vit_small(data: str | Path, out: str | Path = "runs/imagenet-vit-small", **changes: Any) -> TrainConfig:
    """Train timm's ViT-S/16 on two views of ImageNet with AdamW, and with heads without batch normalisation.

    Unverified: there is no published run of SCE on images with a transformer. Optimizer, schedule and momentum are
    those of MoCo v3's ViT-S, whose result is 73.2%. The loss is that of SCE's ImageNet runs. The heads have GELU and
    biases.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _vit(data, out, changes, "timm:vit_small_patch16_224")


def imagenet_vit_base(data: str | Path, out: str | Path = "runs/imagenet-vit-base", **changes: Any) -> TrainConfig:
    """Train timm's ViT-B/16 on two views of ImageNet with AdamW, and with heads without batch normalisation.

    Unverified, as imagenet_vit_small. MoCo v3's result with a ViT-B is 76.7%.

    Args:
        data, out, changes: See imagenet_100_epochs.
    """
    return _vit(data, out, changes, "timm:vit_base_patch16_224")


def _vit(data: str | Path, out: str | Path, changes: Mapping[str, Any], backbone: str) -> TrainConfig:
    """Return the config of a vision transformer."""
    heads = {"projector_norm": "none", "predictor_norm": "none", "predictor_bias": True, "head_activation": "gelu"}
    optimizer = {
        "name": "adamw", "base_learning_rate": 1.5e-4, "weight_decay": 0.1, "weight_decay_excludes": (),
        "warmup_epochs": 40,
    }  # fmt: skip
    model = {**heads, "backbone": backbone, "batch_norm": "local"}
    return _imagenet(data, out, changes, epochs=300, model=model, optimizer=optimizer)


def _imagenet(
    data: str | Path,
    out: str | Path,
    changes: Mapping[str, Any],
    *,
    epochs: int,
    views: Mapping[str, Any] = TWO_CROPS,
    model: Mapping[str, Any] | None = None,
    loss: Mapping[str, Any] | None = None,
    optimizer: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Return the config of a recipe with other settings; their sections differ from the published two crops."""
    two_crops = {
        "backbone": "resnet50", "projector_hidden": (4096, 4096), "dim": 256, "projector_norm": "all",
        "predictor_hidden": 4096, "symmetric": True, "key_views": 2, "momentum": 0.99, "momentum_schedule": "cosine",
        "batch_norm": "sync",
    }  # fmt: skip
    targets = {"temperature": 0.1, "target_temperature": 0.07, "coefficient": 0.5, "queue_size": 65536}
    lars = {
        "name": "lars", "base_learning_rate": 0.3, "momentum": 0.9, "weight_decay": 1e-6, "warmup_epochs": 10
    }  # fmt: skip
    config = TrainConfig(
        data=cast(Path, data),  # which may be a string: the config converts it, unless it is empty
        out=cast(Path, out),
        epochs=epochs,
        batch_size=4096,
        precision=published_precision(changes),
        views=ViewsConfig(**views),
        model=ModelConfig(**{**two_crops, **(model or {})}),
        loss=LossConfig(**{**targets, **(loss or {})}),
        optimizer=OptimizerConfig(**{**lars, **(optimizer or {})}),
    )
    return changed(config, changes)
