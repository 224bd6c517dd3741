"""Estimate the time and memory of a run by a trial step on random images."""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sce_fast.train.step import TrainingStep

MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a run on one rank; the time excludes evaluation and waiting for data."""

    step_seconds: float
    state_bytes: int  # weights, gradients, optimizer's moments, momentum encoder
    activation_bytes: int  # that autograd keeps for the backward pass of one part of the batch
    queue_bytes: int

    def describe(self, steps: int) -> str:
        """Return one line for the user."""
        total = self.state_bytes + self.activation_bytes + self.queue_bytes
        return (
            f"Estimate: {self.step_seconds:.3g} s a step, {steps} steps in {duration(steps * self.step_seconds)} if "
            f"the loader keeps up; {total / MIB:,.0f} MiB a rank (activations {self.activation_bytes / MIB:,.0f}, "
            f"networks and optimizer {self.state_bytes / MIB:,.0f}, queue {self.queue_bytes / MIB:,.1f})"
        )


def estimate(step: TrainingStep) -> Estimate:
    """Run copies of the networks and the loss forward and backward on random images; the run itself is unchanged.

    Every rank has to call it.

    Raises:
        MemoryError: a part of the batch does not fit the GPU's memory.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [view.size for view in step.config.views.augmentations()]
    devices = [step.device] if step.device.type == "cuda" else []
    try:
        views = [torch.randn(step.part_size, 3, size, size, generator=generator).to(step.device) for size in sizes]
        model = copy.deepcopy(step.model)
        with torch.random.fork_rng(devices=devices):
            activations = _saved_bytes(step, model, views)
            seconds = _seconds(step, model, views)
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{step.part_size} images of {sizes} pixels do not fit the memory of {step.device}; raise --accumulation, "
            f"or lower --batch-size: {error}"
        ) from error
    moments = 2 if step.config.optimizer.name == "adamw" else 1
    state = (2 + moments) * _bytes(step.parameters) + _bytes(p for p in step.model.parameters() if not p.requires_grad)
    return Estimate(
        step_seconds=seconds * step.config.accumulation,
        state_bytes=state,
        activation_bytes=activations,
        queue_bytes=_bytes([step.queue.keys]),
    )


def duration(seconds: float) -> str:
    """Return seconds as text: 12 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min" if minutes >= 10 else f"{int(minutes)} min {seconds % 60:.0f} s"
    return f"{int(hours)} h {minutes % 60:.0f} min" if days < 1 else f"{int(days)} d {hours % 24:.0f} h"


def _saved_bytes(step: TrainingStep, model: nn.Module, views: list[Tensor]) -> int:
    """Return the bytes that autograd keeps for the backward pass: each storage once, weights and images left out."""
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *views]}
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        step.loss(model, views)[0].backward()
    return sum(sizes.values())


def _seconds(step: TrainingStep, model: nn.Module, views: list[Tensor]) -> float:
    _wait(step.device)
    started = time.perf_counter()
    step.loss(model, views)[0].backward()
    _wait(step.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
