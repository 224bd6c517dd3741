"""Handwritten digits moving over textured backgrounds: about five minutes of training on two CPU cores."""

from pathlib import Path
from typing import Any, cast

from sce_fast.config import (
    ClipsConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    ViewsConfig,
)
from sce_fast.recipes.changes import changed


def demo_video(
    data: str | Path, out: str | Path = "runs/demo-video", *, test: str | Path | None = None, **changes: Any
) -> TrainConfig:
    """Train a narrow R3D-18 on small clips, two from each video.

    Args:
        data: Videos to train on: a list file or class folders. Labels are used only for evaluation.
        out: Run folder.
        test: List file or class folders of held-out videos; None for no evaluation during training.
        changes: Other settings, by name; a dict changes some settings of a section.

    Returns:
        The config of the video demo, which takes about five minutes on two CPU cores.
    """
    data, out, test = cast(Path, data), cast(Path, out), cast(Path | None, test)  # the config converts strings
    config = TrainConfig(
        data=data,
        out=out,
        epochs=10,
        batch_size=16,  # many small steps: the loss falls only after some hundred
        log_every=30,
        checkpoint_every=300,
        # Two thirds of a video: a digit moves far between two frames, as the coarse grid of the temporal layers needs.
        clips=ClipsConfig(frames=8, seconds=2.0),
        views=ViewsConfig(
            names=("strong", "strong"),
            sizes=(32,),
            scales=((0.5, 1.0),),
            hue=(0.5,),  # any: the colour of the background is not to be learned
            blur=(0.0,),
            flip=(0.0,),  # left and right are classes
            mean=(0.45,) * 3,
            std=(0.225,) * 3,
        ),
        model=ModelConfig(
            backbone="r3d18",
            width=16,
            projector_hidden=(128,),
            dim=64,
            projector_norm="all",
            predictor_hidden=0,
            momentum=0.95,  # the run is short: the teacher must not lag behind for a quarter of it
            momentum_schedule="constant",
        ),
        # One key in six has the query's motion: were the teacher to draw many closer, only motion would be learned.
        # The keys of four steps: a longer queue would hold many of the 960 videos, each as its own negative.
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=0.9, queue_size=128),
        optimizer=OptimizerConfig(name="sgd", base_learning_rate=0.8, weight_decay=5e-4, warmup_epochs=2),
        evaluation=EvaluationConfig(train=data if test else None, test=test, every=5, resize=32, crop=32, clips=2),
    )
    return changed(config, changes)
