"""The loss on a CPU by the C++ kernel in csrc/cpu/solve.cpp: one pass over the candidates."""

from typing import Any

import torch

from sce_fast.loss.pack import TYPES, pack, pack_solution
from sce_fast.loss.problem import Mean, Problem, Solution
from sce_fast.native import CPU

PRODUCTS = (torch.float32, torch.bfloat16)

# Whether ATen's brgemm multiplies matrices of this dtype on this processor. `import torch` comes before this call: the
# kernels look for brgemm in the torch that is loaded.
BRGEMM = {dtype: CPU.module is not None and CPU.module.has_brgemm(dtype == torch.bfloat16) for dtype in PRODUCTS}


def bfloat16_pays(amx: bool, amd: bool) -> bool:
    """Return whether a processor that can multiply in bfloat16 is faster at it than in float32.

    The rule is one of processors, not a measurement, so that all ranks and a resumed run on equal machines round alike.
    AMD's AVX-512 takes half the time of float32 (benchmarks/results/cpu_avx512). Intel's takes twice the time without
    AMX (docs/benchmarks.md). AMX has not been measured; its tiles multiply several times as fast as AVX-512. Any other
    processor takes float32.
    """
    return amx or amd


# Whether products with bfloat16 candidates are computed in bfloat16.
BFLOAT16_PRODUCTS = BRGEMM[torch.bfloat16] and bfloat16_pays(CPU.module.has_amx(), CPU.module.is_amd())


def vector_instructions() -> str:
    """Return the name of the vector instructions that the kernel's exponentials use on this processor."""
    return str(CPU.module.vector_instructions())


def products(dtype: torch.dtype) -> str:
    """Return how tiles of a dtype of PRODUCTS are multiplied on this processor."""
    if dtype == torch.bfloat16 and BRGEMM[dtype] and not BFLOAT16_PRODUCTS:
        return "as float32, which is faster on this processor"
    if BRGEMM[dtype]:
        return "brgemm of ATen"
    why = "ATen has none for this processor" if CPU.module.finds_brgemm() else "not found in this torch"
    return f"{'plain loops, slower' if dtype == torch.float32 else 'as float32'} (brgemm: {why})"


def refuses(problem: Problem) -> str | None:
    """Return why the kernel cannot serve this problem, or None."""
    if problem.query.device.type != "cpu":
        return f"the inputs are on {problem.query.device}; move them to the CPU or use another backend"
    if problem.compute_dtype not in TYPES:
        return f"it computes in float32, and an input is {problem.compute_dtype}; use backend='reference'"
    return None if CPU.module is not None else CPU.refusal


def solve(problem: Problem) -> Solution:
    """Return loss per row, gradient and statistics."""
    solution = Solution.empty(problem, torch.float32)
    fields, _owners = pack(problem)
    _solve(fields, pack_solution(solution), product_dtype_of(problem))
    if solution.gradient is not None and problem.query.dtype != torch.float32:
        solution.gradient = solution.gradient.to(problem.query.dtype)
    return solution


def solve_mean(problem: Problem) -> Mean:
    """Return the mean of the loss rows, its gradient and the statistics."""
    fields, _owners = pack(problem)
    batch, key_views = fields["batch"], fields["key_views"]
    mean = torch.empty((), dtype=torch.float32, device="cpu")
    gradient = None
    if problem.needs_gradient:
        gradient = torch.empty(problem.query.shape, dtype=torch.float32, device="cpu")
    statistics = torch.empty((2 + key_views, batch), dtype=torch.float32, device="cpu")
    rows, row_bytes = statistics.data_ptr(), batch * statistics.element_size()
    solution = {
        "rows": rows,
        "gradient": 0 if gradient is None else gradient.data_ptr(),
        "gradient_type": TYPES[torch.float32],
        "target_entropy": rows + 2 * row_bytes,
        "positive_probability": rows + row_bytes,
        "mean": mean.data_ptr(),
    }
    _solve(fields, solution, product_dtype_of(problem))
    return mean, gradient, statistics


def _solve(fields: dict[str, Any], solution: dict[str, int], product: torch.dtype) -> None:
    CPU.module.solve(
        CPU.module.Problem(**fields),
        CPU.module.Solution(**solution),
        BRGEMM[product],
        product == torch.bfloat16,
        torch.get_num_threads(),
    )


def product_dtype_of(problem: Problem) -> torch.dtype:
    """Return bfloat16 if such products pay on this processor and all candidates have this dtype, otherwise float32.

    Products in float32 widen 16-bit candidates tile by tile. An odd D takes them too, since products in bfloat16
    multiply pairs.
    """
    candidates = [t.dtype for t in (problem.queue, problem.batch_keys) if t is not None]
    even = problem.query.shape[-1] % 2 == 0
    narrow = BFLOAT16_PRODUCTS and even and all(dtype == torch.bfloat16 for dtype in candidates)
    return torch.bfloat16 if narrow else torch.float32
