"""The loss on a CPU by our C++ kernel: one pass over the candidates in csrc/cpu/sce_forward.cpp."""

import torch
from torch import Tensor

from sce_fast.problem import Problem, Solution

try:
    from sce_fast import _cpu

    MISSING, BRGEMM = "", _cpu.has_brgemm()
except ImportError as error:  # built without a compiler or without torch
    _cpu, MISSING, BRGEMM = None, str(error), False

REMEDY = "install again where torch and a C++ compiler are, with SCE_FAST_BUILD=cpu to see why it fails"
# As in csrc/problem.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NOTHING = (0, 0, 0)


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot serve these inputs, or None."""
    if _cpu is None:
        return f"the CPU kernels are not built ({MISSING}); {REMEDY}"
    if problem.query.device.type != "cpu":
        return f"the inputs are on {problem.query.device}; move them to the CPU or use another backend"
    if problem.compute_dtype not in TYPES:
        return f"it computes in float32, and an input is {problem.compute_dtype}; use backend='reference'"
    return None


def solve(problem: Problem) -> Solution:
    """Loss per row, gradient and statistics."""
    views, batch, dim = problem.query.shape
    key_views = len(problem.key)
    batch_keys = None if problem.batch_keys is None else problem.batch_keys.expand(key_views, -1, -1)
    inputs = [_rows(t) for t in (problem.query, problem.key, problem.queue, batch_keys)]

    def empty(*shape: int) -> Tensor:  # whatever torch's defaults are, the kernel writes float32 on the CPU
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    rows, positive_probability, target_entropy = empty(batch), empty(batch), empty(key_views, batch)
    gradient = empty(views, batch, dim) if problem.needs_gradient else None
    _cpu.sce_forward(
        *(NOTHING if t is None else (t.data_ptr(), TYPES[t.dtype], len(t)) for t in inputs),
        (views, key_views, batch, dim),
        problem.row_offset,
        problem.same_views,
        problem.zero_logit,
        problem.needs_target,
        float(problem.temperature),
        float(problem.target_temperature),
        float(problem.coefficient),
        (
            rows.data_ptr(),
            0 if gradient is None else gradient.data_ptr(),
            target_entropy.data_ptr(),
            positive_probability.data_ptr(),
        ),
        BRGEMM,
        torch.get_num_threads(),
    )
    return Solution(
        rows=rows,
        gradient=None if gradient is None else gradient.to(problem.query.dtype),
        target_entropy=target_entropy,
        positive_probability=positive_probability,
    )


def _rows(tensor: Tensor | None) -> Tensor | None:
    """(…, D) → contiguous (rows, D)."""
    return None if tensor is None else tensor.reshape(-1, tensor.shape[-1]).contiguous()
