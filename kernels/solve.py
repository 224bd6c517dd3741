"""The loss by the Triton kernels: which inputs they serve, the workspace, the launches.

Importing this file imports no Triton; it is loaded at the first call.
"""

import contextlib
import functools
import importlib.util
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sce_fast.kernels import plan
from sce_fast.loss.problem import FIXED_SHIFT_BITS, Problem, Solution

LARGEST_DIM = 512
OLDEST_CAPABILITY = (8, 0)
INSTALLED = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on a CPU: TRITON_INTERPRET=1."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve these inputs, or None."""
    if (reason := _refuses_device(problem.query.device, "the inputs are")) is not None:
        return reason
    if problem.compute_dtype == torch.float64:
        return "it computes in float32, and an input is torch.float64; use backend='reference'"
    if problem.query.shape[-1] > LARGEST_DIM:
        return f"rows have {problem.query.shape[-1]} values, and it takes up to {LARGEST_DIM}; use backend='reference'"
    return None


def refuses_ring(keys: Tensor) -> str | None:
    """Return why the enqueue kernel cannot write to this ring (K, D), or None."""
    if (reason := _refuses_device(keys.device, "the queue's tensors are")) is not None:
        return reason
    if keys.dtype == torch.float64:
        return "it computes in float32, and the queue is torch.float64; use backend='reference'"
    return None


def _refuses_device(device: torch.device, what: str) -> str | None:
    if not INSTALLED:
        return "triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
    if interpreted():
        return None if device.type == "cpu" else f"TRITON_INTERPRET=1 runs on a CPU, and {what} on {device}"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"{what} on {device}; move them to an NVIDIA GPU or use another backend"
    return too_old(device)


def too_old(device: torch.device) -> str | None:
    """Why the GPU cannot run the kernels, or None."""
    capability = _gpu(device).capability
    if capability >= OLDEST_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and it needs "
        f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}; use backend='reference'"
    )


# As torch.compiler.assume_constant_result does, which imports all of torch._dynamo for it: torch.compile asks while it
# traces, and cannot look inside.
too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]


def solve(problem: Problem) -> Solution:
    """Loss per row, gradient and statistics: a few launches on the current stream, nothing read back."""
    device = problem.query.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return _solve(problem)


def _solve(problem: Problem) -> Solution:
    from sce_fast.kernels.combine import epilogue_kernel

    views, batch, dim = problem.query.shape
    key_views = len(problem.key)
    settings = _settings(problem)
    query, key = _rows(problem.query), _rows(problem.key)
    per_view = problem.batch_keys is not None and len(problem.batch_keys) > 1
    batch_keys = None if problem.batch_keys is None else _last_dense(problem.batch_keys)
    queue = None if problem.queue is None else _last_dense(problem.queue)
    shared, own = _Stream(None, None), _Stream(None, None)
    if queue is not None or not per_view:
        shared = _stream(problem, settings, query, key, None if per_view else batch_keys, queue)
    if per_view:
        own = _stream(problem, settings, query, key, batch_keys, None)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    rows, positive_probability, target_entropy = empty(batch), empty(batch), empty(key_views, batch)
    gradient = empty(views, batch, dim, dtype=query.dtype) if problem.needs_gradient else None
    block_d = plan.next_power_of_2(dim)
    epilogue_kernel[(batch,)](
        query, key, shared.statistics, shared.outputs, own.statistics, own.outputs,
        rows, gradient, target_entropy, positive_probability,
        problem.scalars, *settings.numbers,
        query.stride(0), key.stride(0), views, key_views, len(list(problem.terms())),
        D=dim, BLOCK_D=block_d, SHARED=shared.statistics is not None, PER_VIEW=per_view, FIXED=settings.fixed,
        GRADIENT=problem.needs_gradient, TARGET=problem.needs_target, ZERO_LOGIT=problem.zero_logit,
        SAME_VIEWS=problem.same_views,
        num_warps=plan.warps_of_a_row(dim),
    )  # fmt: skip
    return Solution(rows, gradient, target_entropy, positive_probability)


@dataclass(frozen=True)
class _Settings:
    """What both streams of a call share."""

    product: torch.dtype
    precision: str  # of tl.dot
    fixed: bool
    numbers: tuple[float, float, float]  # temperature, target temperature, coefficient; not used where tensors


def _settings(problem: Problem) -> _Settings:
    product = product_dtype(problem)
    numbers = (0.0, 0.0, 0.0)
    fixed = False
    if problem.scalars is None:
        numbers = (float(problem.temperature), float(problem.target_temperature), float(problem.coefficient))
        coldest = min(numbers[:2]) if problem.needs_target else numbers[0]
        fixed = product != torch.float16 and 2 * math.log2(math.e) / coldest <= FIXED_SHIFT_BITS
    return _Settings(product, dot_precision(product), fixed, numbers)


def product_dtype(problem: Problem) -> torch.dtype:
    """That of the candidates; float32 where queue and batch keys differ. Rows are rounded to it."""
    dtypes = {tensor.dtype for tensor in (problem.queue, problem.batch_keys) if tensor is not None}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def dot_precision(product: torch.dtype) -> str:
    """How tl.dot multiplies, by torch.get_float32_matmul_precision() for float32.

    "highest" takes three tf32 products on tensor cores (about 2⁻²¹ of an operand, well within the rule that plain
    float32 sets). Triton's "ieee" would do without tensor cores. Both fit the registers only in small tiles: whoever
    wants speed gives the queue in 16 bits, or calls torch.set_float32_matmul_precision("high").
    """
    if product != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@dataclass(frozen=True)
class _Stream:
    """What every row has seen of the candidates of one launch, splits summed."""

    statistics: Tensor | None  # (3, B, rows) shift, exact sum, sum of the rounded weights
    outputs: Tensor | None  # (B, rows with an output, D)


def _stream(
    problem: Problem, settings: _Settings, query: Tensor, key: Tensor, batch_keys: Tensor | None, queue: Tensor | None
) -> _Stream:
    """One pass over the candidates of batch_keys (B, M, D) and queue (K, D)."""
    from sce_fast.kernels.combine import merge_splits_kernel
    from sce_fast.kernels.forward_pass import sce_forward_kernel

    _, batch, dim = problem.query.shape
    parts = 1 if batch_keys is None else len(batch_keys)
    students = len(query)
    teachers = 0 if not problem.needs_target else (batch if parts > 1 else len(key))
    batch_count = 0 if batch_keys is None else batch_keys.shape[1]
    queue_count = 0 if queue is None else len(queue)
    skip_own_view = parts > 1 and problem.same_views
    config = launch_config(
        dim=dim,
        product=settings.product,
        precision=settings.precision,
        gpu=_gpu(query.device),
        student_rows=students - batch if skip_own_view else students,
        teacher_rows=teachers,
        parts=parts,
        candidates=(batch_count, queue_count),
    )
    block = config.block_candidates
    no_output = 0 if problem.needs_gradient else students
    rows = students + teachers
    statistics = torch.empty((3, parts, config.splits, rows), dtype=torch.float32, device=query.device)
    outputs = torch.empty((parts, config.splits, rows - no_output, dim), dtype=torch.float32, device=query.device)

    def launch(students_here: int, teachers_here: int, output: bool) -> None:
        blocks = -(-students_here // config.block_rows) + -(-teachers_here // config.block_rows)
        sce_forward_kernel[(blocks, config.splits, parts)](
            query, key, batch_keys, queue, statistics, outputs, problem.scalars, *settings.numbers[:2],
            query.stride(0), key.stride(0),
            *((0, 0) if batch_keys is None else batch_keys.stride()[:2]), 0 if queue is None else queue.stride(0),
            batch, students_here, teachers_here, rows, rows - no_output, students, students - no_output,
            batch_count, queue_count, problem.row_offset,
            D=dim, HEAD=config.head, TAIL=config.tail, BLOCK_ROWS=config.block_rows, BLOCK_CANDIDATES=block,
            PRODUCT=triton_dtype(settings.product), PRECISION=settings.precision, FIXED=settings.fixed, OUTPUT=output,
            HAS_BATCH=batch_keys is not None, HAS_QUEUE=queue is not None,
            EVEN_BATCH=batch_count % block == 0, EVEN_QUEUE=queue_count % block == 0,
            PER_VIEW=parts > 1, SKIP_OWN_VIEW=skip_own_view,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    if problem.needs_gradient:
        launch(students, teachers, True)
    else:
        # without the student's outputs the sides are different kernels: in one, each would take the other's registers
        launch(students, 0, False)
        if teachers:
            launch(0, teachers, True)
    if config.splits == 1:
        return _Stream(statistics, outputs)
    merged = torch.empty((3, parts, rows), dtype=torch.float32, device=query.device)
    merged_outputs = torch.empty((parts, rows - no_output, dim), dtype=torch.float32, device=query.device)
    merge_splits_kernel[(rows, parts)](
        statistics, outputs, merged, merged_outputs, config.splits, rows, no_output,
        D=dim, BLOCK_D=plan.next_power_of_2(dim), SPLITS=plan.next_power_of_2(config.splits),
        SPLITS_AT_A_TIME=plan.SPLITS_AT_A_TIME, num_warps=plan.warps_of_a_merge(dim),
    )  # fmt: skip
    return _Stream(merged, merged_outputs)


def triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def launch_config(**sizes: Any) -> plan.Config:
    """plan.choose; tests put smaller blocks in its place."""
    return plan.choose(**sizes)


@functools.cache
def _gpu(device: torch.device) -> plan.Gpu:
    if device.type != "cuda":  # the interpreter runs block after block
        return plan.Gpu(capability=(8, 0), shared_memory=163 * 1024, processors=4)
    properties = torch.cuda.get_device_properties(device)
    return plan.Gpu(
        capability=(properties.major, properties.minor),
        shared_memory=plan.shared_memory((properties.major, properties.minor)),
        processors=properties.multi_processor_count,
    )


def _last_dense(tensor: Tensor) -> Tensor:
    """The tensor, copied only where the values of a row do not lie one behind the other."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """(V, N, D) → (V · N, D) with dense rows; a view where the strides allow it."""
    return _last_dense(tensor.reshape(-1, tensor.shape[-1]))
