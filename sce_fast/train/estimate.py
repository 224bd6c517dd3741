"""Estimates at the start of a run: its memory by two small trials, and its time by its own first steps."""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sce_fast.train.step import TrainingStep

MIB = 2**20
TIMED_STEPS, TIMED_SECONDS = 10, 10.0  # at most; of a short run, a tenth of the steps


@dataclass(frozen=True)
class Memory:
    """Memory of a run on one rank, in bytes, without the views that the loader prepares."""

    state: int  # weights, gradients, optimizer's moments, momentum encoder, average for evaluation
    activations: int  # that autograd keeps for the backward pass of one part of the batch
    queue: int

    def describe(self, ranks: int) -> str:
        """Return one line for the user."""
        total, on_each = self.state + self.activations + self.queue, " on each rank" if ranks > 1 else ""
        parts = {"activations": self.activations, "networks and optimizer": self.state, "queue": self.queue}
        listed = ", ".join(f"{name} {in_mib(count)}" for name, count in parts.items() if count)
        return f"Memory: about {in_mib(total)}{on_each} ({listed})"


def memory(step: TrainingStep) -> Memory:
    """Run a copy of the networks and the loss on a few random images or clips; the run itself is unchanged.

    Two small batches show how the activations grow, which costs a small share of one step. Every rank has to call it.
    """
    groups = step.config.model.batch_norm_groups if step.config.model.batch_norm == "shuffle" else 1
    few = 2 * max(1, groups // step.ranks.size)  # batch normalisation needs two rows in each group
    model = copy.deepcopy(step.model)
    devices = [step.device] if step.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if step.part_size <= 2 * few:
            activations = _saved_bytes(step, model, step.part_size)
        else:
            first, second = (_saved_bytes(step, model, rows) for rows in (few, 2 * few))
            activations = first + (second - first) * (step.part_size - few) // few
    moments = 2 if step.config.optimizer.name == "adamw" else 1
    state = (2 + moments) * _bytes(step.parameters) + _bytes(p for p in step.model.parameters() if not p.requires_grad)
    if step.average is not None:
        state += _bytes(step.average.parameters())
    return Memory(state, activations, 0 if step.queue is None else _bytes([step.queue.keys]))


class Pace:
    """Times a run's steps from the second on: the first builds, compiles and tunes.

    Args:
        steps: that the run has to take.
        device: of the networks.

    Example:
        >>> pace = Pace(660, device)
        >>> if pace.is_known(seconds):  # after each step: time spent on training so far
        ...     print(pace.describe())
        Time: about 12 min for 660 steps of 1.09 s
    """

    def __init__(self, steps: int, device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._last = 1 + min(TIMED_STEPS, max(1, steps // 10))
        self._done, self._started, self.step_seconds = 0, 0.0, 0.0

    def is_known(self, seconds: float) -> bool:
        """Return true after one of the first steps, once. For this step and the first, the host waits."""
        self._done += 1
        if self._done > self._last:
            return False
        ends = self._done == self._last or (self._done > 1 and seconds - self._started >= TIMED_SECONDS)
        if ends or self._done == 1:
            waited = -time.perf_counter()
            _wait(self._device)
            seconds += waited + time.perf_counter()
        if self._done == 1:
            self._started = seconds
        if ends:
            self.step_seconds, self._last = (seconds - self._started) / (self._done - 1), 0
        return ends

    def describe(self) -> str:
        """Return one line for the user."""
        total = duration(self._steps * self.step_seconds)
        return f"Time: about {total} for {self._steps:,} steps of {self.step_seconds:.3g} s"


def duration(seconds: float) -> str:
    """Return seconds as text: 1.5 s, 12 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 1:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min" if minutes >= 10 else f"{int(minutes)} min {seconds % 60:.0f} s"
    return f"{int(hours)} h {minutes % 60:.0f} min" if days < 1 else f"{int(days)} d {hours % 24:.0f} h"


def _saved_bytes(step: TrainingStep, model: nn.Module, rows: int) -> int:
    """Return the bytes that autograd keeps for the backward pass: each storage once, weights and views left out."""
    shapes = [step.config.input_shape(view.size) for view in step.config.views.augmentations()]
    views = [torch.zeros(rows, *shape, device=step.device, dtype=step.dtype).normal_() for shape in shapes]
    known = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *views]}
    saved: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        step.loss(model, views)[0].backward()
    return sum(saved.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def in_mib(count: int) -> str:
    """Return bytes as text: 2.5 MiB, 1,874 MiB."""
    return f"{count / MIB:,.0f} MiB" if count >= 10 * MIB else f"{count / MIB:.2g} MiB"
