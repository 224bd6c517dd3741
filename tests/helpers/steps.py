"""Training steps of a config in float64 on random views, and the same steps in plain PyTorch."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.plain_training import PlainTraining
from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, TrainConfig, replace
from sce_fast.distributed import Ranks
from sce_fast.train.step import TrainingStep

STEPS, ROWS = 20, 8
Numbers = dict[str, float]  # of one step


def config_of_steps(**changes: Any) -> TrainConfig:
    """Return the config of small steps in float64, with these settings changed."""
    config = small_config(Path("images"), Path("run"), batch_size=ROWS, precision="float64")
    config = replace(config, evaluation=EvaluationConfig(), views={"sizes": 12}, optimizer={"name": "sgd"})
    return replace(config, **changes)


def numbers(step: int) -> Numbers:
    """Return what changes from step to step, with every schedule that a run may have."""
    share = step / (STEPS - 1)
    cosine = (1 + math.cos(math.pi * share)) / 2
    return {
        "rate": 0.05 * min(1, step / 4) * cosine,
        "momentum": 1 - 0.1 * cosine,
        "tau": 0.2,
        "tau_m": 0.05 + 0.05 * share,
        "weight": 1 - 0.75 * share,
    }


def network() -> nn.Module:
    """Return a small backbone. Its activation has no kink, where a gradient would hang on the last bit of a sum."""
    layers = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.SiLU()
    more = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, *more)


def batch(config: TrainConfig, step: int) -> list[Tensor]:
    """Return the views of all ranks in a step."""
    generator = torch.Generator().manual_seed(step)
    sizes = [augmentation.size for augmentation in config.views.augmentations()]
    images = torch.randn(config.batch_size, 3, max(sizes), max(sizes), dtype=torch.float64, generator=generator)
    noise = [torch.randn(config.batch_size, 3, s, s, dtype=torch.float64, generator=generator) for s in sizes]
    return [images[..., :s, :s] + 0.5 * n for s, n in zip(sizes, noise, strict=True)]


def trained(config: TrainConfig, group: Ranks | None = None, scale: float = 1.0) -> dict[str, Tensor]:
    """Take the steps with sce_fast; return every tensor of the run, and the loss of each step.

    Args:
        group: the ranks that share each batch.
        scale: of the learning rate.
    """
    group = group or Ranks()
    step = _built(config, group)
    losses = []
    for number in range(STEPS):
        parts = [
            [view.chunk(config.accumulation)[part].chunk(group.size)[group.rank] for view in batch(config, number)]
            for part in range(config.accumulation)
        ]
        n = numbers(number)
        measures = step(
            parts, number=number, learning_rate=scale * n["rate"], momentum=n["momentum"], temperature=n["tau"],
            target_temperature=n["tau_m"], coefficient=n["weight"],
        )  # fmt: skip
        losses.append(torch.stack(group.gather_tensors(measures["loss"])).mean())
    assert int(step.guard.failed_step) == -1
    tensors = {f"{name}.{key}": t for name, m in step.modules.items() for key, t in m.state_dict().items()}
    return {**tensors, "losses": torch.stack(losses)}


def plainly_trained(config: TrainConfig, scale: float = 1.0, ranks: int = 1) -> dict[str, Tensor]:
    """Take the same steps in plain PyTorch on one process; return the tensors with the names of a run.

    Args:
        ranks: number of ranks with batch statistics of their own.
    """
    start = _built(config, Ranks())  # for its initial weights and queue
    model, optimizer = start.model, config.optimizer
    plain = PlainTraining(
        model.backbone, model.projector, model.predictor, None if start.queue is None else start.queue.keys,
        key_views=config.model.key_views, symmetric=config.model.symmetric, batch_keys=config.loss.batch_keys,
        joint=config.model.mutual_pass, parts=config.accumulation, ranks=ranks,
        average_momentum=config.model.evaluation_momentum,
        adamw={"beta1": optimizer.momentum, "weight_decay": optimizer.weight_decay}
        if optimizer.name == "adamw" else None,
        sgd={"momentum": optimizer.momentum, "weight_decay": optimizer.weight_decay},
    )  # fmt: skip
    losses = []
    for number in range(STEPS):
        n = numbers(number)
        losses.append(plain(batch(config, number), **{**n, "rate": scale * n["rate"]}))
    modules = {
        "model.backbone": plain.backbone, "model.projector": plain.projector, "model.predictor": plain.predictor,
        "model.momentum_backbone": plain.teacher[0], "model.momentum_projector": plain.teacher[1],
        "average": plain.average if config.model.evaluation_momentum else None,
    }  # fmt: skip
    tensors = {f"{name}.{key}": t for name, m in modules.items() if m is not None for key, t in m.state_dict().items()}
    if plain.queue is not None:
        tensors |= {"queue.keys": plain.queue, "queue.cursor": torch.tensor(plain.cursor)}
    return {**tensors, "losses": torch.tensor(losses, dtype=torch.float64)}


def assert_same_steps(found: dict[str, Tensor], plain: dict[str, Tensor], *, statistics: bool = True) -> None:
    """Compare every tensor within 1e-9, and check that the steps have changed the weights.

    Args:
        statistics: compare running statistics too.
    """
    assert {name for name in found if not name.startswith("guard.")} == plain.keys()
    for name, tensor in plain.items():
        if statistics or not ("running" in name or "num_batches" in name):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9, msg=partial("{}: {}".format, name))
    assert len(set(plain["losses"].tolist())) == STEPS


def _built(config: TrainConfig, group: Ranks) -> TrainingStep:
    torch.manual_seed(0)
    return TrainingStep(config, torch.device("cpu"), group, network())
