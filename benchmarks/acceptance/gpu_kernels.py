"""The kernels of the loss that are to be right on a GPU: tests, acceptance run and sanitizer go by this table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import checked_problem
from sce_fast.native import CUDA

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GpuKernel:
    """One implementation, and how a call comes to it."""

    title: str
    backend: str  # of sce_loss
    source: str  # its pass over the candidates
    function: str  # that file's kernel, as a profiler names it
    sanitized: tuple[str, ...]  # parts of the names of all its kernels
    major: int | None = None  # compute capability that it is for, where it runs on no other

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        if not (ROOT / self.source).exists():
            return f"{self.source} is not there"
        major, minor = torch.cuda.get_device_capability()
        if self.major is not None and major != self.major:
            return f"it is for compute capability {self.major}.x, and this GPU has {major}.{minor}"
        if self.backend.startswith("cuda") and CUDA.missing:
            return f"the CUDA kernels are not built ({CUDA.missing})"
        return None


TRITON_KERNELS = (
    "forward_pass_kernel",
    "combine_splits_kernel",
    "combine_kernel",
    "enqueue_kernel",
    "advance_cursor_kernel",
)
SM80, SM90 = "csrc/cuda/sm80_forward_pass.cu", "csrc/cuda/sm90_forward_pass.cu"
# A further kernel is one further line. backend="cuda" takes the one of the GPU's own architecture.
KERNELS = {
    "triton": GpuKernel("Triton", "triton", "kernels/forward_pass.py", "forward_pass_kernel", TRITON_KERNELS),
    "sm80": GpuKernel("CUDA sm_80", "cuda_sm80", SM80, "sm80_sce_forward", ("sce_fast",)),
    "sm90": GpuKernel("CUDA sm_90", "cuda", SM90, "sm90_sce_forward", ("sce_fast",), major=9),
}


def functions_run(call: Callable[[], Any]) -> list[str]:
    """The names of the GPU's functions that a call launches, by torch's profiler; none where it sees nothing."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return sorted({event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA})


def backends_of_a_cpu() -> list[str]:
    """Those that serve one, for trying out there what is meant for a GPU."""
    row = torch.ones(1, 16)
    problem = checked_problem(row, row, row)
    return [name for name, backend in BACKENDS.items() if backend.refuses(problem) is None]
