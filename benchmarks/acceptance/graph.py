"""Training steps in one CUDA graph against steps as they are: the same bits over 20 steps, and the time of both.

The graph itself has not run on a GPU before the first acceptance run.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.benchmarks.acceptance.supervise import Failure, NotRun
from sce_fast.benchmarks.step import synthetic, training_step
from sce_fast.config import ClipsConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig, replace
from sce_fast.train.capture import CapturedStep, refusal
from sce_fast.train.checkpoint import random_state
from sce_fast.train.step import TrainingStep

DEVICE = torch.device("cuda")
STEPS, ROUNDS, STEPS_OF_A_ROUND = 20, 3, 5
# Heads and queue of the steps that are compared. Their network has no pooling, whose gradient is summed in any order.
HEADS: dict[str, Any] = {"small_input": True, "projector_hidden": (256,), "dim": 128, "predictor_hidden": 256}
QUEUE = LossConfig(queue_size=4096, queue_dtype="bfloat16")


@dataclass(frozen=True)
class Case:
    """Steps whose bits are compared."""

    settings: dict[str, Any]  # of the config
    backbone: str = "resnet18"
    frames: int = 0
    network: Callable[[], nn.Module] | None = None  # in place of the backbone
    optimizer: dict[str, Any] = field(default_factory=lambda: {"name": "lars", "base_learning_rate": 0.3})

    def build(self) -> TrainingStep:
        """Return the step with its first weights."""
        model = ModelConfig(backbone=self.backbone, width=16, **HEADS)
        config = TrainConfig(
            data=Path(), out=Path(), batch_size=32, precision="bfloat16", model=model, loss=QUEUE,
            views=ViewsConfig(sizes=(32,)), clips=ClipsConfig(frames=self.frames),
            optimizer=OptimizerConfig(warmup_epochs=0, **self.optimizer), cuda_graph=True,
        )  # fmt: skip
        torch.manual_seed(0)
        backbone = None if self.network is None else self.network()
        return TrainingStep(replace(config, **self.settings), DEVICE, backbone=backbone)


def dropping() -> nn.Module:
    """Return a network that draws random numbers on the GPU."""
    layers = nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.3)
    return nn.Sequential(*layers, nn.Conv2d(16, 32, 3, stride=2), nn.Flatten(), nn.Linear(32 * 49, 128), nn.Dropout())


class Waiting(nn.Module):
    """A network that reads its features on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.network = dropping()

    def forward(self, images: Tensor) -> Tensor:
        features = self.network(images)
        return features if features.isfinite().all() else features.nan_to_num()


SGD = {"name": "sgd", "base_learning_rate": 0.1, "nesterov": True}
ADAMW = {"name": "adamw", "base_learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 1.0}
CASES = {
    "images, LARS": Case({}),
    "images, SGD": Case({}, optimizer=SGD),
    "images, kernels in CUDA C++": Case({"loss": {"backend": "cuda"}}),
    "images, AdamW, clipped": Case({}, optimizer=ADAMW),
    "clips, SGD": Case({}, backbone="r3d18", frames=4, optimizer=SGD),
    "images, dropout": Case({}, network=dropping),
    "images, two parts, batch keys, average": Case(
        {"accumulation": 2, "loss": {"batch_keys": True}, "model": {"evaluation_momentum": 0.99}}
    ),
    "images, shuffled batch norm, float16": Case({"precision": "float16", "model": {"batch_norm": "shuffle"}}),
    "images, schedule of λ": Case({"loss": {"coefficient_warmup_epochs": 1}}),
    "images, schedules of λ and τ_m": Case(
        {"loss": {"coefficient_warmup_epochs": 1, "target_temperature_warmup_epochs": 1}}
    ),
}  # fmt: skip
TIMED: dict[str, tuple[str, dict[str, Any]]] = {  # backbone and arguments of training_step
    "ResNet-50, batch 256, 224 pixels": ("resnet50", {"batch_size": 256, "size": 224}),
    "ResNet-18, batch 64, 32 pixels": ("resnet18", {"batch_size": 64, "size": 32}),
    "R3D-18, batch 16, clips of 8 × 112 pixels": ("r3d18", {"batch_size": 16, "size": 112, "frames": 8}),
}


def graph_items(on_progress: Callable[[str, str], None]) -> dict[str, Callable[[], Any]]:
    """Return the comparisons of bits and of times, the most important first.

    Args:
        on_progress: takes an item and how far it has come.
    """
    bits: dict[str, Callable[[], Any]] = {
        f"same bits: {name}": functools.partial(same_bits, case, functools.partial(on_progress, f"same bits: {name}"))
        for name, case in CASES.items()
    }
    times = {f"time: {name}": functools.partial(times_of, *how) for name, how in TIMED.items()}
    first = dict(list(bits.items())[:4])
    return first | times | bits | {"a network that waits for the GPU is named": waiting_is_named}


def same_bits(case: Case, on_progress: Callable[[str], None]) -> dict[str, Any]:
    """Take the same steps three times, the last time by a graph; raise Failure if any bit differs."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):  # algorithms that repeat bits
        found = []
        for name in ("as they are", "again", "captured"):
            on_progress(name)
            found.append(tensors_after(case, captured=name == "captured"))
    plain, again, captured = found
    repeats = not differing(plain, again)
    different = differing(plain, captured)
    data = {"steps": STEPS, "tensors": len(plain), "different": different, "repeats": repeats}
    if different:
        why = "" if repeats else "; but steps without a graph do not repeat their bits either"
        raise Failure(f"{len(different)} of {len(plain)} tensors differ, such as {different[0]}{why}", data)
    return data


def tensors_after(case: Case, *, captured: bool) -> dict[str, Tensor]:
    """Return every tensor of a run after its steps, what each step measured, and the random state."""
    step = case.build()
    if (reason := refusal(step)) is not None:
        raise NotRun(reason)
    take = CapturedStep(step)
    if not captured:
        take.warm_up = STEPS  # no step is captured
    scheduled = step.config.loss.scheduled()
    measures = []
    for number, parts in enumerate(batches(step)):
        share = number / (STEPS - 1)
        loss = {"coefficient": 1 - share / 2, "target_temperature": 0.05 + 0.02 * share}
        loss = {name: loss[name] for name in scheduled}
        numbers = {"learning_rate": step.config.learning_rate * (1 - share), "momentum": 0.9 + 0.1 * share, **loss}
        # with τ_m on the device the loss rounds otherwise, so a plain step is no comparison then
        one = take if captured or "target_temperature" in scheduled else step
        measures.append(one(parts, number=number, **numbers))
    if captured:
        require_captured(take)
    tensors = {f"{name}.{key}": t for name, module in step.modules.items() for key, t in module.state_dict().items()}
    for name, parameter in step.model.named_parameters():
        tensors |= {f"{entry} of {name}": t for entry, t in step.optimizer.state.get(parameter, {}).items()}
    tensors |= {f"{name} of step {i}": t for i, measured in enumerate(measures) for name, t in measured.items()}
    return {**{name: t.detach().cpu() for name, t in tensors.items()}, "random state": random_state(step.device)}


def require_captured(step: CapturedStep) -> None:
    """Raise Failure with the reason if a step has not been captured."""
    if step.describe() != "the step is captured":
        raise Failure(step.describe())


def batches(step: TrainingStep) -> Iterator[list[list[Tensor]]]:
    """Yield the same random parts for every run."""
    config, generator = step.config, torch.Generator(step.device).manual_seed(1)
    shape = (step.part_size, *config.input_shape(32))
    for _ in range(STEPS):
        yield [
            [torch.randn(shape, device=step.device, generator=generator) for _ in config.views.names]
            for _ in range(config.accumulation)
        ]


def differing(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors whose bits differ; NaN, the norm of a step that float16 skips, equals NaN."""
    return [name for name, t in tensors.items() if not torch.equal(t.nan_to_num(), others[name].nan_to_num())]


def waiting_is_named() -> dict[str, str]:
    """Take steps of a network that reads its features on the host; raise Failure unless the file and line are named."""
    step = Case({}, network=Waiting).build()
    take = CapturedStep(step)
    for number, parts in zip(range(take.warm_up + 1), batches(step), strict=False):
        take(parts, number=number, learning_rate=0.1, momentum=0.99)
    described = take.describe()
    if "graph.py:" not in described or "waits for the device" not in described:
        raise Failure(f"expected a reason that names this file, and it is {described!r}")
    return {"described": described}


def times_of(backbone: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the median seconds of a step as it is and captured, and the memory that torch holds after each."""
    loss = LossConfig(queue_dtype="bfloat16")
    model = ModelConfig(backbone=backbone, small_input=arguments["size"] <= 64)
    torch.cuda.empty_cache()
    more: dict[str, Any] = {"precision": "bfloat16", "optimizer": "lars", "device": DEVICE.type, **arguments}
    step = training_step(model, loss, **more)
    views = synthetic(arguments["batch_size"], arguments["size"], DEVICE.type, arguments.get("frames", 0))
    if (reason := refusal(step)) is not None:
        raise NotRun(reason)
    captured = CapturedStep(step)
    seconds, reserved = {}, {}
    ways: dict[str, Callable[..., Any]] = {"as it is": step, "captured": captured}
    for name, take in ways.items():
        seconds[name] = median_seconds(take, views, captured.warm_up + 1)
        reserved[name] = torch.cuda.memory_reserved()
    require_captured(captured)
    return {"seconds": seconds, "reserved_bytes": reserved, "backend": step.backend, "backbone": backbone, **arguments}


def median_seconds(take: Callable[..., Any], views: Iterator[list[Tensor]], warm_up: int) -> float:
    """Return the seconds of a step without pauses between steps: the median over rounds of the mean."""

    def some(count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for number in range(count):
            take([next(views)], number=number, learning_rate=0.01, momentum=0.99)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    some(warm_up)
    return statistics.median(some(STEPS_OF_A_ROUND) for _ in range(ROUNDS))
