"""The papers' pretraining on Kinetics-200 and Kinetics-400 (Denize et al., Machine Vision and Applications 34, 2023).

Settings are those of the official configurations (github.com/juliendenize/eztorch, eztorch/configs), unless a recipe
marks a value as unverified. Published results are those of its docs/sce_mvap.md. All recipes train for 200 epochs with
batches of 512 on several GPUs; batch statistics are shared by all ranks, and precision is float16 on a GPU.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sce_fast.config import ClipsConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.recipes.changes import changed
from sce_fast.recipes.device import published_precision

MEAN, STD = (0.45,) * 3, (0.225,) * 3
WARMUP = 35 / 200  # of the epochs
SCALE = (0.2, 0.766)  # smallest and largest crop, as in Feichtenhofer et al., CVPR 2021
HALF_STRENGTH = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
FULL_STRENGTH = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.4, "hue": 0.2}
STANDARD_CLIPS = {"frames": 8, "seconds": 2.56, "size": 224}
SMALL_CLIPS = {"frames": 16, "seconds": 1.28, "size": 112}


def kinetics200_r3d18_baseline(
    data: str | Path, out: str | Path = "runs/kinetics200-r3d18-baseline", **changes: Any
) -> TrainConfig:
    """Train an R3D-18 on Kinetics-200 with the baseline of the paper's ablations.

    Colours are jittered at half the strength of the final recipe, there are no temporal differences, and τ_m is 0.07.
    Published, but unverified here: about 63.9% top-1 of the linear classifier on Kinetics-200; fine-tuned, 86.3% on
    UCF101 and 57.0% on HMDB51.

    Args:
        data: Folder of videos in class folders, a list file, or a table of Kinetics.
        out: Run folder.
        changes: Other settings, by name; a dict changes some settings of a section.

    Raises:
        ValueError, TypeError: a setting is unknown, out of range or of another type.
    """
    return _kinetics(
        data, out, changes, queue_size=32768, strength=HALF_STRENGTH, temporal_difference=0.0, target_temperature=0.07
    )


def kinetics200_r3d18(data: str | Path, out: str | Path = "runs/kinetics200-r3d18", **changes: Any) -> TrainConfig:
    """Train an R3D-18 on Kinetics-200 with the final settings of the paper's ablations.

    The published result is not known here.

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.

    Example:
        >>> kinetics200_r3d18("kinetics200/train", epochs=100, loss={"coefficient": 0.4})
    """
    return _kinetics(data, out, changes, queue_size=32768)


def kinetics200_r3d18_small(
    data: str | Path, out: str | Path = "runs/kinetics200-r3d18-small", **changes: Any
) -> TrainConfig:
    """Train an R3D-18 on Kinetics-200 with short clips of small frames: 16 frames of 112 pixels in 1.28 seconds.

    As in the baseline, colours are jittered at half strength, there are no temporal differences, and τ_m is 0.07. The
    published result is not known here.

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.
    """
    return _kinetics(
        data,
        out,
        changes,
        clips=SMALL_CLIPS,
        queue_size=32768,
        strength=HALF_STRENGTH,
        temporal_difference=0.0,
        target_temperature=0.07,
    )


def kinetics400_r3d18(data: str | Path, out: str | Path = "runs/kinetics400-r3d18", **changes: Any) -> TrainConfig:
    """Train an R3D-18 on Kinetics-400 with clips of 8 frames.

    The published result is not known here.

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.
    """
    return _kinetics(data, out, changes)


def kinetics400_r3d18_small(
    data: str | Path, out: str | Path = "runs/kinetics400-r3d18-small", **changes: Any
) -> TrainConfig:
    """Train an R3D-18 on Kinetics-400 with short clips of small frames: 16 frames of 112 pixels in 1.28 seconds.

    The published result is not known here.

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.
    """
    return _kinetics(data, out, changes, clips=SMALL_CLIPS)


def kinetics400_r3d50(data: str | Path, out: str | Path = "runs/kinetics400-r3d50", **changes: Any) -> TrainConfig:
    """Train a Slow R3D-50 on Kinetics-400 with clips of 8 frames.

    Published: 67.6% top-1 of the linear classifier on Kinetics-400; fine-tuned, 94.1% on UCF101 and 70.5% on HMDB51;
    retrieval at rank 1, 81.5% and 43.0%. The run took 4 or 8 A100 GPUs (its text and its command differ).

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.
    """
    return _kinetics(data, out, changes, backbone="r3d50")


def kinetics400_r3d50_16(
    data: str | Path, out: str | Path = "runs/kinetics400-r3d50-16", **changes: Any
) -> TrainConfig:
    """Train a Slow R3D-50 on Kinetics-400 with clips of 16 frames in the same 2.56 seconds.

    Published: 69.6% top-1 of the linear classifier on Kinetics-400; fine-tuned, 95.3% on UCF101 and 74.7% on HMDB51;
    retrieval at rank 1, 83.9% and 45.9%. The run took 8 or 16 A100 GPUs (its text and its command differ).

    Args:
        data, out, changes: See kinetics200_r3d18_baseline.
    """
    return _kinetics(data, out, changes, backbone="r3d50", clips={**STANDARD_CLIPS, "frames": 16})


def _kinetics(
    data: str | Path,
    out: str | Path,
    changes: Mapping[str, Any],
    *,
    backbone: str = "r3d18",
    clips: Mapping[str, Any] = STANDARD_CLIPS,
    queue_size: int = 65536,
    strength: Mapping[str, float] = FULL_STRENGTH,
    temporal_difference: float = 0.2,
    target_temperature: float = 0.05,
) -> TrainConfig:
    """Return the config of a recipe with other settings; all recipes share what is no argument here."""
    hidden = {"r3d18": 1024, "r3d50": 4096}[backbone]
    jitter: dict[str, Any] = {name: (value,) for name, value in strength.items()}
    config = TrainConfig(
        data=cast(Path, data),  # which may be a string: the config converts it, unless it is empty
        out=cast(Path, out),
        epochs=200,
        batch_size=512,
        precision=published_precision(changes),
        clips=ClipsConfig(frames=clips["frames"], seconds=clips["seconds"], temporal_difference=temporal_difference),
        views=ViewsConfig(
            names=("alpha", "beta"),
            sizes=clips["size"],
            scales=(SCALE,),
            mean=MEAN,
            std=STD,
            **jitter,
        ),
        model=ModelConfig(
            backbone=backbone,
            projector_hidden=(hidden, hidden),
            dim=256,
            projector_norm="all",
            predictor_hidden=hidden,
            symmetric=True,
            momentum=0.99,
            momentum_schedule="cosine",
            batch_norm="sync",
        ),
        loss=LossConfig(temperature=0.1, target_temperature=target_temperature, coefficient=0.5, queue_size=queue_size),
        optimizer=OptimizerConfig(
            name="lars", base_learning_rate=2.4, momentum=0.9, weight_decay=1e-6, warmup_epochs=35
        ),
    )
    return changed(config, changes)
