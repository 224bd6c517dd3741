"""The loss kernels that must be correct on a GPU: tests, acceptance run and sanitizer all use this table.

python -m benchmarks.acceptance.gpu_kernels --device cuda        print their names
"""

import argparse
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
    """One implementation of the forward pass, and the backend that selects it."""

    title: str
    backend: str  # of sce_loss
    source: str  # file of its forward pass
    function: str  # the kernel of that file, as a profiler names it
    sanitized: tuple[str, ...]  # substrings of the names of all its kernels
    major: int | None = None  # the only major compute capability that it runs on

    def missing(self) -> str | None:
        """Return why it cannot run here, or None."""
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        if not (ROOT / self.source).exists():
            return f"{self.source} does not exist"
        major, minor = torch.cuda.get_device_capability()
        if self.major is not None and major != self.major:
            return f"it requires compute capability {self.major}.x, and this GPU has {major}.{minor}"
        if self.backend.startswith("cuda") and CUDA.missing:
            return f"the CUDA kernels are {CUDA.missing}"
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
    "sm80": GpuKernel("CUDA sm_80", "cuda_sm80", SM80, "sm80_forward_pass", ("sce_fast",)),
    "sm90": GpuKernel("CUDA sm_90", "cuda", SM90, "sm90_forward_pass", ("sce_fast",), major=9),
}


def launched_functions(call: Callable[[], Any]) -> list[str]:
    """Return the names of the GPU functions that a call launches, by torch's profiler; empty if it sees none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize()
    return sorted({event.name for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA})


def cpu_backends() -> list[str]:
    """Return the backends that serve a CPU, to try the run without a GPU."""
    row = torch.ones(1, 16)
    problem = checked_problem(row, row, row)
    return [name for name, backend in BACKENDS.items() if backend.refuses(problem) is None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    print(*(KERNELS if parser.parse_args().device == "cuda" else cpu_backends()))
