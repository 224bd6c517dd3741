"""The papers' ablations on ImageNet-100 and their first ImageNet runs: SCE, InfoNCE and ReSSL with the same settings.

There is no official configuration for these runs. All settings are from memory of the paper (Denize et al., WACV 2023),
so none is verified. The results of the ablation of λ come from a note on the paper by a third party.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sce_fast.config import LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.config.subset import SubsetConfig
from sce_fast.recipes.changes import changed
from sce_fast.recipes.device import published_precision

IMAGENET100 = Path("imagenet100")  # a name in CLASS_LISTS


def imagenet100(data: str | Path, out: str | Path = "runs/imagenet100", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on ImageNet-100 with a weak view for the keys and a strong view for the queries.

    Of the data's classes, the run takes the 100 of ImageNet-100, which are WordNet ids such as n01558993, so that data
    may be the train folder of ImageNet. The list is that of Contrastive Multiview Coding (imagenet100.txt in
    github.com/HobbitLong/CMC); the official code of SCE has the same one. `--subset.classes FILE` names others, and
    `--subset.classes None` takes all. Unverified: all settings. Published, but unverified here: 83.37% top-1 of the
    linear classifier, and 82.94% in the ablation of λ.

    Args:
        data: Class folders, a list file with classes, or shards with classes.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.

    Example:
        >>> imagenet100("imagenet100/train", loss={"coefficient": 0.4})
    """
    return _asymmetric(data, out, changes, classes=IMAGENET100)


def imagenet100_infonce(data: str | Path, out: str | Path = "runs/imagenet100-infonce", **changes: Any) -> TrainConfig:
    """Train the ablation of imagenet100 with λ = 1, which is InfoNCE with a queue, as in MoCo v2.

    Unverified: all settings. Published, but unverified here: 81.11% top-1 of the linear classifier.

    Args:
        data, out, changes: See imagenet100.
    """
    return _asymmetric(data, out, changes, coefficient=1.0, classes=IMAGENET100)


def imagenet100_ressl(data: str | Path, out: str | Path = "runs/imagenet100-ressl", **changes: Any) -> TrainConfig:
    """Train the ablation of imagenet100 with λ = 0, which is like ReSSL: similarities alone make the target.

    The prediction has the own key among its candidates, which ReSSL leaves out. Unverified: all settings. Published,
    but unverified here: 81.53% top-1 of the linear classifier.

    Args:
        data, out, changes: See imagenet100.
    """
    return _asymmetric(data, out, changes, coefficient=0.0, classes=IMAGENET100)


def imagenet_asymmetric(data: str | Path, out: str | Path = "runs/imagenet-asymmetric", **changes: Any) -> TrainConfig:
    """Train a ResNet-50 on ImageNet for 200 epochs with a weak and a strong view, as the paper compares with MoCo v2.

    Unverified: all settings, which are those of imagenet100. Published, but unverified here: 70.5% top-1 of the linear
    classifier, where the authors' runs of MoCo v2 and ReSSL give 68.8% and 70.2%.

    Args:
        data, out, changes: See imagenet100.
    """
    return _asymmetric(data, out, changes)


def _asymmetric(
    data: str | Path,
    out: str | Path,
    changes: Mapping[str, Any],
    *,
    coefficient: float = 0.5,
    classes: Path | None = None,
) -> TrainConfig:
    """Return the config of a recipe with other settings; all recipes share what is no argument here."""
    config = TrainConfig(
        data=cast(Path, data),  # which may be a string: the config converts it, unless it is empty
        out=cast(Path, out),
        epochs=200,
        batch_size=512,
        precision=published_precision(changes),
        subset=SubsetConfig(classes=classes),
        views=ViewsConfig(names=("weak", "strong"), sizes=(224,), scales=((0.2, 1.0),)),
        model=ModelConfig(
            backbone="resnet50",
            projector_hidden=(4096,),
            dim=256,
            projector_norm="none",
            predictor_hidden=0,
            symmetric=False,
            momentum=0.996,
            momentum_schedule="constant",
            batch_norm="shuffle",
            batch_norm_groups=8,
        ),
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=coefficient, queue_size=65536),
        optimizer=OptimizerConfig(
            name="sgd", base_learning_rate=0.15, momentum=0.9, weight_decay=1e-4, warmup_epochs=10
        ),
    )
    return changed(config, changes)
