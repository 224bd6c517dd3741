"""Whole training steps in one CUDA graph: what a step takes from the host, when it is captured, and when it cannot be.

A graph repeats the same kernels with the same arguments on the same memory. So views are copied into buffers, and what
changes from step to step (rates, momentum, λ, temperatures, the step's number) lies in () tensors on the device. This
has not run on a GPU yet; the tests replay steps on a CPU (tests/helpers/tape.py).
"""

import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from sce_fast.train.cuda_graph import CudaRecorder
from sce_fast.train.step import Part, TrainingStep
from sce_fast.util.layout import channels_last

# Steps before the capture: kernels are compiled and the optimizer makes its state. DistributedDataParallel arranges and
# times its buckets in its first steps (PyTorch's notes on CUDA semantics).
WARM_UP_STEPS, WARM_UP_STEPS_OF_RANKS = 3, 11
OLDEST_NCCL = (2, 9, 6)  # that can be captured with DistributedDataParallel
ERROR_HANDLING = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


class Recorder(Protocol):
    """Records a function once and repeats its work on the device; CudaRecorder does."""

    def aside(self) -> AbstractContextManager[None]:
        """Run the work inside where `record` will run it."""

    def waits(self) -> AbstractContextManager[list[str]]:
        """Collect where the host waits for the device inside; the list is filled at the end."""

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Call a function, do nothing of its work on the device, and return a function that does this work."""


class CapturedStep:
    """Takes the steps of a TrainingStep: the first ones as they are, all others by replaying one CUDA graph.

    It is called as the TrainingStep is. Results, weights and checkpoints have the same bits, except that the GPU
    kernels of the loss round otherwise if τ_m has a schedule, and with the backends cuda and cuda_sm80 also if λ has
    one. Restore a checkpoint before the first call: a graph finds its tensors by their place in memory. That memory,
    activations included, stays allocated between the steps.

    Args:
        step: the step to take.
        recorder: what records it; a CudaRecorder by default, or none if `refusal` returns a reason.

    Attributes:
        reason: why steps are not captured, or None.

    Raises:
        RuntimeError: by a call, if the capture fails for another reason.

    Example:
        >>> captured = CapturedStep(step)
        >>> for number in range(100):
        ...     measures = captured([views], number=number, learning_rate=0.1, momentum=0.99)
        >>> captured.describe()
        'the step is captured'
    """

    def __init__(self, step: TrainingStep, recorder: Recorder | None = None) -> None:
        self.step = step
        self.reason = refusal(step) if recorder is None else None
        self.warm_up = WARM_UP_STEPS if step.ranks.size == 1 else WARM_UP_STEPS_OF_RANKS
        self._recorder = recorder if recorder or self.reason else CudaRecorder(step.device)
        self._taken = 0
        self._numbers: dict[str, Tensor] = {}  # what changes from step to step, on the device
        self._fixed: dict[str, float] = {}  # arguments that must not change, since the graph holds them
        self._buffers: list[Part] = []
        self._measures: dict[str, Tensor] = {}  # of the newest replay
        self._replay: Callable[[], None] | None = None

    def describe(self) -> str:
        """Return whether steps are captured, or why not."""
        if self.reason is not None:
            return f"the step is not captured: {self.reason}"
        return f"the step is captured{f' after {self.warm_up} steps' if self._replay is None else ''}"

    def __call__(
        self, parts: Iterable[list[Tensor]], *, number: int, learning_rate: float, **numbers: float
    ) -> dict[str, Tensor]:
        """Take one step; see TrainingStep.

        Raises:
            ValueError: an argument of the loss has changed although the config has no schedule for it.
        """
        if self._recorder is None:
            return self.step(parts, number=number, learning_rate=learning_rate, **numbers)
        self._place(number=number, learning_rate=learning_rate, **numbers)
        inputs: Iterable[Part] = self.step.inputs(parts, number)
        if self.reason is None:
            inputs = self._fill(inputs)
        if self.reason is not None:
            measures = self._take(inputs)
        elif self._taken < self.warm_up:
            measures = self._warmed_up(inputs)
        else:
            measures = self._replayed()
        for group in self.step.optimizer.param_groups:
            group["lr"] = learning_rate  # of the host again, as after any step
        self._taken += 1
        return measures

    def _place(self, **numbers: float) -> None:
        """Put what changes from step to step into its tensors."""
        config = self.step.config.loss
        for name, value in numbers.items():
            if name in ("number", "learning_rate", "momentum", *config.scheduled()):
                if name not in self._numbers:
                    dtype = torch.int64 if name == "number" else torch.float64
                    self._numbers[name] = torch.zeros((), dtype=dtype, device=self.step.device)
                self._numbers[name].fill_(value)
            elif self._fixed.setdefault(name, value) != value:
                raise ValueError(
                    f"{name}={value}: expected {self._fixed[name]}, as in the step before, since the config gives it "
                    "no schedule and a CUDA graph holds it"
                )

    def _fill(self, inputs: Iterable[Part]) -> list[Part]:
        """Copy each part into its buffers as soon as it is drawn; return the buffers, or parts that do not fit them."""
        filled: list[Part] = []
        for part, (views, orders) in enumerate(inputs):
            if self._taken == 0:
                self._buffers.append(self._buffers_like(views, orders))
            fits = part < len(self._buffers) and _shapes(self._buffers[part]) == _shapes((views, orders))
            if fits:
                for buffer, value in zip(_tensors(self._buffers[part]), _tensors((views, orders)), strict=True):
                    buffer.copy_(value, non_blocking=True)
            elif self.reason is None:
                self._give_up(f"part {part} of a step has other shapes than before, {_shapes((views, orders))}")
            filled.append(self._buffers[part] if fits else (views, orders))
        if len(filled) < len(self._buffers) and self.reason is None:
            self._give_up(f"a step has {len(filled)} parts, and the first one had {len(self._buffers)}")
        return filled

    def _buffers_like(self, views: list[Tensor], orders: list[Tensor] | None) -> Part:
        """Return buffers in the dtype and layout of the networks' inputs, so that no step converts them."""
        step = self.step
        images = [
            torch.empty_like(
                view, dtype=step.input_dtype(view), device=step.device, memory_format=channels_last(view.dim())
            )
            for view in views
        ]
        return images, None if orders is None else [torch.empty_like(order, device=step.device) for order in orders]

    def _take(self, inputs: Iterable[Part]) -> dict[str, Tensor]:
        arguments: dict[str, Any] = {**self._fixed, **self._numbers}
        return self.step.take(inputs, **arguments)

    def _warmed_up(self, inputs: Iterable[Part]) -> dict[str, Tensor]:
        """Take a step before the capture; in the last one, find where it waits for the device."""
        assert self._recorder is not None
        with self._recorder.waits() as waits, self._recorder.aside():
            measures = self._take(inputs)
        if waits and self._taken == self.warm_up - 1:
            self._give_up(f"the step waits for the device, at {', '.join(dict.fromkeys(waits))}")
        return measures

    def _replayed(self) -> dict[str, Tensor]:
        """Capture the step if that is still to be done, and replay it."""
        assert self._recorder is not None
        if self._replay is None:
            self._replay = self._recorder.record(lambda: self._measures.update(self._take(self._buffers)))
        self._replay()
        return {name: measure.clone() for name, measure in self._measures.items()}  # the next replay overwrites them

    def _give_up(self, reason: str) -> None:
        """Take all further steps without a graph, and say so. Numbers stay on the device, so that no bit changes."""
        self.reason, self._replay, self._measures, self._buffers = reason, None, {}, []
        if self.step.ranks.is_first:
            warnings.warn(f"cuda_graph=True: {self.describe()}", stacklevel=4)


def refusal(step: TrainingStep) -> str | None:
    """Return why the steps cannot be captured in a CUDA graph here, as far as is known before the first one, or None.

    Example:
        >>> refusal(TrainingStep(config, torch.device("cpu")))
        'the run is on the CPU, and CUDA graphs need an NVIDIA GPU'
    """
    if step.device.type != "cuda" or torch.version.hip is not None:
        where = "the CPU" if step.device.type == "cpu" else "an AMD GPU" if torch.version.hip else str(step.device)
        return f"the run is on {where}, and CUDA graphs need an NVIDIA GPU"
    if torch.is_anomaly_enabled():
        return "torch.autograd's anomaly detection is on, which waits for the device"
    if os.environ.get("SCE_FAST_CHECK") == "1":
        return "SCE_FAST_CHECK=1 checks norms in every step, which waits for the device"
    return None if step.ranks.size == 1 else _refusal_of_ranks(step.ranks.size)


def _refusal_of_ranks(ranks: int) -> str | None:
    """Return why steps with DistributedDataParallel cannot be captured, or None."""
    if (backend := dist.get_backend()) != "nccl":
        return f"{ranks} ranks talk through {backend}, and only nccl can be captured"
    version = torch.cuda.nccl.version()
    if version < OLDEST_NCCL:
        return f"nccl is {'.'.join(map(str, version))}, and {'.'.join(map(str, OLDEST_NCCL))} or later is needed"
    if os.environ.get(ERROR_HANDLING) != "0":
        return f"{ranks} ranks can be captured only with {ERROR_HANDLING}=0 in their environment from the start"
    return None


def _tensors(part: Part) -> list[Tensor]:
    views, orders = part
    return [*views, *(orders or [])]


def _shapes(part: Part) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in _tensors(part)]
