"""Handwritten digits at random positions: two to four minutes of training on two CPU cores."""

from pathlib import Path
from typing import Any, cast

from sce_fast.config import EvaluationConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from sce_fast.recipes.changes import changed


def demo(
    data: str | Path, out: str | Path = "runs/demo", *, test: str | Path | None = None, **changes: Any
) -> TrainConfig:
    """Train a narrow ResNet-18 on small images, with a weak view for the keys and a strong view for the queries.

    Args:
        data: Class folders to train on. Labels are used only for evaluation.
        out: Run folder.
        test: Class folders of held-out images; None for no evaluation during training.
        changes: Other settings, by name; a dict changes some settings of a section.

    Returns:
        The config of the demo, which takes two to four minutes on two CPU cores.
    """
    data, out, test = cast(Path, data), cast(Path, out), cast(Path | None, test)  # the config converts strings
    config = TrainConfig(
        data=data,
        out=out,
        epochs=30,
        batch_size=64,
        log_every=11,
        checkpoint_every=110,
        views=ViewsConfig(
            names=("weak", "strong"), sizes=(32,), scales=((0.2, 1.0),), flip=(0.0,), mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        model=ModelConfig(
            backbone="resnet18",
            width=16,
            small_input=True,
            projector_hidden=(128,),
            dim=64,
            projector_norm="hidden",
            predictor_hidden=0,
            symmetric=False,
            momentum=0.95,  # the run is short: the teacher must not lag behind for a quarter of it
            momentum_schedule="constant",
        ),
        # The keys of two steps. A longer queue would hold many of the 1,438 images, each as its own negative.
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=0.5, queue_size=128),
        optimizer=OptimizerConfig(name="sgd", base_learning_rate=0.12, weight_decay=5e-4, warmup_epochs=2),
        evaluation=EvaluationConfig(train=data if test else None, test=test, every=5, resize=40, crop=40),
    )
    return changed(config, changes)
