"""Handwritten digits that stand at random places, in about two minutes on two CPU cores."""

from pathlib import Path

from sce_fast.config import EvaluationConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig


def demo(*, data: Path, out: Path = Path("runs/demo"), test: Path | None = None) -> TrainConfig:
    """A narrow ResNet-18, a weak view as the target and a strong one for the student.

    Args:
        data: class folders to train on; their labels are used by the evaluation alone.
        test: class folders of held-out images; None for no evaluation while training.
    """
    return TrainConfig(
        data=data,
        out=out,
        epochs=30,
        batch_size=64,
        log_every=11,
        checkpoint_every=110,
        views=ViewsConfig(
            names=("weak", "strong"), sizes=(32,), scales=((0.2, 1.0),), flip=0.0, mean=(0.5,) * 3, std=(0.5,) * 3
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
            momentum=0.95,  # few steps: the teacher must not lag behind for a quarter of the run
            momentum_schedule="constant",
        ),
        # The keys of two steps: a long queue would hold most of the 1,438 images, each as its own negative.
        loss=LossConfig(temperature=0.1, target_temperature=0.05, coefficient=0.5, queue_size=128),
        optimizer=OptimizerConfig(name="sgd", base_learning_rate=0.12, weight_decay=5e-4, warmup_epochs=2),
        evaluation=EvaluationConfig(train=data if test else None, test=test, every=5, resize=40, crop=40),
    )
