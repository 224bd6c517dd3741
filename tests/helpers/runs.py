"""A small but complete training run on photographs, for tests."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from sce_fast.config import (
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    ViewsConfig,
    replace,
)
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.log import TIMING, read_log


def small_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Return the config of a run of three epochs on a CPU, with these fields changed."""
    config = TrainConfig(
        data=data,
        out=out,
        epochs=3,
        batch_size=8,
        seed=1,
        device="cpu",
        checkpoint_every=2,
        keep_checkpoints=3,
        log_every=1,
        pictures=False,
        views=ViewsConfig(names=("alpha", "beta"), sizes=(32,)),
        model=ModelConfig(
            backbone="resnet18", width=8, small_input=True, projector_hidden=(16,), dim=8, predictor_hidden=16
        ),
        loss=LossConfig(queue_size=40, target_temperature=0.07),
        optimizer=OptimizerConfig(warmup_epochs=1),
        evaluation=EvaluationConfig(train=data, test=data, every=2, resize=40, crop=32, neighbours=3),
    )
    return dataclasses.replace(config, **changes)


def small_video_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    """Return the config of a run on video_folder's twelve videos, with these fields changed."""
    config = small_config(data, out, batch_size=4, **changes)
    return replace(
        config,
        clips={"frames": 4, "seconds": 0.4, "temporal_difference": 0.3},
        model={"backbone": "r3d18"},
        loss={"queue_size": 16},
    )


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the last checkpoint."""
    return load_checkpoint(checkpoints(run / "checkpoints")[-1]).tensors


def assert_same_tensors(run: Path, other: Path) -> None:
    """Compare weights, momentum encoder, optimizer, queue and random state, bit for bit."""
    tensors, others = final_tensors(run), final_tensors(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def assert_same_run(run: Path, other: Path) -> None:
    """Compare the last checkpoints and the logs, bit for bit, except for what depends on the time."""
    assert_same_tensors(run, other)
    assert repeated(run / "log.jsonl") == repeated(other / "log.jsonl")


def repeated(log: Path) -> list[dict[str, Any]]:
    """Return the events of a log without what depends on the time."""
    lines = read_log(log)
    assert all("time" in line for line in lines)
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]
