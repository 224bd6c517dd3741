"""The loss on a CPU by our C++ kernel: one pass over the candidates in csrc/cpu/solve.cpp."""

import torch
from torch import Tensor

from sce_fast.loss.problem import Problem, Solution
from sce_fast.native import CPU

PRODUCTS = (torch.float32, torch.bfloat16)

# Whether ATen's brgemm multiplies these on this processor, and whether products are in bfloat16 where candidates are.
BRGEMM = {dtype: CPU.module is not None and CPU.module.has_brgemm(dtype == torch.bfloat16) for dtype in PRODUCTS}
BFLOAT16_PRODUCTS = BRGEMM[torch.bfloat16]

# As in csrc/problem.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
NOTHING = (0, 0, 0)


def vector_instructions() -> str:
    """Those that the kernel's exponentials use on this processor."""
    return str(CPU.module.vector_instructions())


def refuses(problem: Problem) -> str | None:
    """Why the kernel cannot serve these inputs, or None."""
    if CPU.module is None:
        return f"the CPU kernels are not built ({CPU.missing}); {CPU.remedy}"
    if problem.query.device.type != "cpu":
        return f"the inputs are on {problem.query.device}; move them to the CPU or use another backend"
    if problem.compute_dtype not in TYPES:
        return f"it computes in float32, and an input is {problem.compute_dtype}; use backend='reference'"
    return None


def solve(problem: Problem) -> Solution:
    """Loss per row, gradient and statistics."""
    views, batch, dim = problem.query.shape
    key_views, batch_keys_views = len(problem.key), 1 if problem.batch_keys is None else len(problem.batch_keys)
    inputs = [
        None if t is None else t.contiguous() for t in (problem.query, problem.key, problem.queue, problem.batch_keys)
    ]
    product_dtype = product_dtype_of(problem)

    def empty(*shape: int) -> Tensor:  # whatever torch's defaults are, the kernel writes float32 on the CPU
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    rows, positive_probability, target_entropy = empty(batch), empty(batch), empty(key_views, batch)
    gradient = empty(views, batch, dim) if problem.needs_gradient else None
    CPU.module.sce_forward(
        *(NOTHING if t is None else (t.data_ptr(), TYPES[t.dtype], t.numel() // dim) for t in inputs),
        (views, key_views, batch_keys_views, batch, dim),
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
        BRGEMM[product_dtype],
        product_dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return Solution(
        rows=rows,
        gradient=None if gradient is None else gradient.to(problem.query.dtype),
        target_entropy=target_entropy,
        positive_probability=positive_probability,
    )


def product_dtype_of(problem: Problem) -> torch.dtype:
    """bfloat16 where the processor has such products and all candidates are of that dtype, otherwise float32.

    For float32 products 16-bit candidates are widened tile by tile; so they are for an odd D, as the others take pairs.
    """
    candidates = [t for t in (problem.queue, problem.batch_keys) if t is not None]
    narrow = all(t.dtype == torch.bfloat16 for t in candidates) and problem.query.shape[-1] % 2 == 0
    return torch.bfloat16 if BFLOAT16_PRODUCTS and narrow else torch.float32
