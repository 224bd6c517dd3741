"""Solve the loss with the Triton kernels: which inputs they serve, their workspace, their launches.

Importing this file does not import Triton; the first call does.
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

from sce_fast.kernels.plan import (
    SPLITS_AT_A_TIME,
    Gpu,
    next_power_of_2,
    plan_forward_pass,
    rounds_in_pairs,
    shared_memory,
    warps_of_a_row,
    warps_of_splits,
)
from sce_fast.loss.problem import FIXED_SHIFT_BITS, Problem, Solution

LARGEST_DIM = 512
OLDEST_CAPABILITY = (8, 0)
INSTALLED = importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on a CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(problem: Problem) -> str | None:
    """Return why the kernels cannot serve these inputs, or None if they can."""
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
    """Return why the GPU cannot run the kernels, or None if it can."""
    capability = _gpu(device).capability
    if capability >= OLDEST_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and it needs "
        f"{OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]}; use backend='reference'"
    )


# torch.compile calls too_old while it traces and cannot trace into it. The attribute is what
# torch.compiler.assume_constant_result sets, which would import all of torch._dynamo.
too_old._dynamo_marked_constant = True  # type: ignore[attr-defined]


def solve(problem: Problem) -> Solution:
    """Return loss per row, gradient and statistics by a few launches on the current stream, without a host sync."""
    device = problem.query.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        return _solve(problem)


def _solve(problem: Problem) -> Solution:
    from sce_fast.kernels.combine import combine_kernel

    query_views, _, dim = problem.query.shape
    settings = _settings(problem)
    query, key = _rows(problem.query), _rows(problem.key)
    # Cast before the launch. A kernel that casts its inputs itself spills registers on Hopper at D 256.
    cast_query = query.to(settings.product)
    cast_key = key.to(settings.product) if problem.needs_target else cast_query  # which no block reads then
    per_view = problem.batch_key_views > 1
    # These are cast only if they differ in dtype. Products are float32 then, and far slower than the cast.
    batch_keys = None if problem.batch_keys is None else _last_dense(problem.batch_keys).to(settings.product)
    queue = None if problem.queue is None else _last_dense(problem.queue).to(settings.product)
    shared, of_view = _ForwardPass(None, None), _ForwardPass(None, None)
    if queue is not None or not per_view:
        shared = _forward_pass(problem, settings, cast_query, cast_key, None if per_view else batch_keys, queue)
    if per_view:
        of_view = _forward_pass(problem, settings, cast_query, cast_key, batch_keys, None)

    solution = Solution.empty(problem)
    combine_kernel[(len(solution.rows),)](
        query, key, shared.partials, shared.outputs, of_view.partials, of_view.outputs,
        solution.rows, solution.gradient, solution.target_entropy, solution.positive_probability,
        problem.scalars, *settings.numbers,
        query.stride(0), key.stride(0), query_views, len(problem.key), len(list(problem.terms())),
        D=dim, BLOCK_D=next_power_of_2(dim), SHARED=shared.partials is not None, PER_VIEW=per_view,
        FIXED_SHIFT=settings.fixed_shift, GRADIENT=problem.needs_gradient, TARGET=problem.needs_target,
        ZERO_LOGIT=problem.zero_logit, SAME_VIEWS=problem.same_views,
        num_warps=warps_of_a_row(dim),
    )  # fmt: skip
    return solution


@dataclass(frozen=True)
class _Settings:
    """The settings of both forward passes of a call."""

    product: torch.dtype
    precision: str  # input_precision of tl.dot
    fixed_shift: bool
    numbers: tuple[float, float, float]  # temperature, target temperature, coefficient; unused with Problem.scalars


def _settings(problem: Problem) -> _Settings:
    product = product_dtype(problem)
    numbers = (0.0, 0.0, 0.0)
    if problem.scalars is None:
        numbers = (float(problem.temperature), float(problem.target_temperature), float(problem.coefficient))
    fixed_shift = False
    temperatures = (problem.temperature, problem.target_temperature)[: 2 if problem.needs_target else 1]
    if product != torch.float16 and not any(isinstance(t, Tensor) for t in temperatures):  # also if λ alone is a tensor
        fixed_shift = 2 * math.log2(math.e) / float(min(temperatures)) <= FIXED_SHIFT_BITS
    return _Settings(product, dot_precision(product), fixed_shift, numbers)


def product_dtype(problem: Problem) -> torch.dtype:
    """Return the dtype of the candidates, or float32 where queue and batch keys differ. Rows are rounded to it."""
    dtypes = {tensor.dtype for tensor in (problem.queue, problem.batch_keys) if tensor is not None}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def dot_precision(product: torch.dtype) -> str:
    """Return input_precision of tl.dot; for float32 it follows torch.get_float32_matmul_precision().

    "highest" takes three tf32 products on tensor cores. Their error is about 2⁻²¹ of an operand, well within the rule
    that plain float32 sets. Triton's "ieee" would not use tensor cores. Both fit the registers only in small tiles. For
    speed, keep the queue in 16 bits or call torch.set_float32_matmul_precision("high").
    """
    if product != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


@dataclass(frozen=True)
class _ForwardPass:
    """The partials of every row over one set of candidates, added over the splits; None without a forward pass."""

    partials: Tensor | None  # (3, B, rows) shift, sum of the weights, sum of the rounded weights
    outputs: Tensor | None  # (B, rows with an output, D)


def _forward_pass(
    problem: Problem, settings: _Settings, query: Tensor, key: Tensor, batch_keys: Tensor | None, queue: Tensor | None
) -> _ForwardPass:
    """Stream batch_keys (B, M, D) and queue (K, D) once for every row."""
    from sce_fast.kernels.forward_pass import forward_pass_kernel

    _, batch, dim = problem.query.shape
    batch_key_views = 0 if batch_keys is None else len(batch_keys)
    per_view = batch_key_views > 1
    students = len(query)
    teachers = 0 if not problem.needs_target else (batch if per_view else len(key))
    batch_count = 0 if batch_keys is None else batch_keys.shape[1]
    queue_count = 0 if queue is None else len(queue)
    skip_own_view = per_view and problem.same_views
    launch = plan_forward_pass(
        dim=dim,
        product=settings.product,
        precision=settings.precision,
        gpu=_gpu(query.device),
        student_rows=students - batch if skip_own_view else students,
        teacher_rows=teachers,
        batch_key_views=batch_key_views,
        candidates=(batch_count, queue_count),
    )
    tile = launch.block_candidates
    no_output = 0 if problem.needs_gradient else students
    rows, views = students + teachers, max(1, batch_key_views)
    partials = torch.empty((3, views, launch.splits, rows), dtype=torch.float32, device=query.device)
    outputs = torch.empty((views, launch.splits, rows - no_output, dim), dtype=torch.float32, device=query.device)

    def stream(students_here: int, teachers_here: int, output: bool) -> None:
        blocks = -(-students_here // launch.block_rows) + -(-teachers_here // launch.block_rows)
        forward_pass_kernel[(blocks, launch.splits, views)](
            query, key, batch_keys, queue, partials, outputs, problem.scalars, *settings.numbers[:2],
            query.stride(0), key.stride(0),
            *((0, 0) if batch_keys is None else batch_keys.stride()[:2]), 0 if queue is None else queue.stride(0),
            batch, students_here, teachers_here, rows, rows - no_output, students, students - no_output,
            batch_count, queue_count, problem.row_offset,
            D=dim, HEAD=launch.head, TAIL=launch.tail, BLOCK_ROWS=launch.block_rows, BLOCK_CANDIDATES=tile,
            PRODUCT=triton_dtype(settings.product), PRECISION=settings.precision,
            ROUND_PAIRS=rounds_in_pairs(_gpu(query.device).capability, tile), FIXED_SHIFT=settings.fixed_shift,
            OUTPUT=output, HAS_BATCH=batch_keys is not None, HAS_QUEUE=queue is not None,
            EVEN_BATCH=batch_count % tile == 0, EVEN_QUEUE=queue_count % tile == 0,
            PER_VIEW=per_view, SKIP_OWN_VIEW=skip_own_view,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip

    if problem.needs_gradient:
        stream(students, teachers, True)
    else:
        # Students without outputs and teachers with outputs get a kernel each. One kernel for both would need the
        # registers of the larger side everywhere.
        stream(students, 0, False)
        if teachers:
            stream(0, teachers, True)
    if launch.splits == 1:  # kernels take pointers, so the dimension of one split may stay
        return _ForwardPass(partials, outputs)
    return _combine_splits(partials, outputs)


def _combine_splits(partials: Tensor, outputs: Tensor) -> _ForwardPass:
    """Add partials (3, B, splits, rows) and outputs (B, splits, rows with an output, D) over the splits."""
    from sce_fast.kernels.combine import combine_splits_kernel

    _, views, splits, rows = partials.shape
    _, _, output_rows, dim = outputs.shape
    combined_partials = partials.new_empty(3, views, rows)
    combined_outputs = outputs.new_empty(views, output_rows, dim)
    combine_splits_kernel[(rows, views)](
        partials, outputs, combined_partials, combined_outputs, splits, rows, rows - output_rows,
        D=dim, BLOCK_D=next_power_of_2(dim), SPLITS=next_power_of_2(splits),
        SPLITS_AT_A_TIME=SPLITS_AT_A_TIME, num_warps=warps_of_splits(dim),
    )  # fmt: skip
    return _ForwardPass(combined_partials, combined_outputs)


def triton_dtype(dtype: torch.dtype) -> Any:
    """Return the tl.dtype of a torch.dtype."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


@functools.cache
def _gpu(device: torch.device) -> Gpu:
    if device.type != "cuda":  # the interpreter, which runs block after block
        return Gpu(capability=(8, 0), shared_memory=163 * 1024, processors=4)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        capability=(properties.major, properties.minor),
        shared_memory=shared_memory((properties.major, properties.minor)),
        processors=properties.multi_processor_count,
    )


def _last_dense(tensor: Tensor) -> Tensor:
    """Return the tensor, copied only if the values of a row are not contiguous."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _rows(tensor: Tensor) -> Tensor:
    """Return (V, N, D) as (V · N, D) with dense rows, a view where the strides allow it."""
    return _last_dense(tensor.reshape(-1, tensor.shape[-1]))
