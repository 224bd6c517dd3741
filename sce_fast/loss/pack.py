"""The fields of the C++ structs Problem and Solution (csrc/problem.h), by keyword."""

from typing import Any

import torch
from torch import Tensor

from sce_fast.loss.problem import Problem, Solution

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Type` in csrc/problem.h


def pack(
    problem: Problem, *, scalars: Tensor | None = None, alignment: int = 1
) -> tuple[dict[str, Any], list[Tensor | None]]:
    """Return the fields of the C++ Problem and the tensors that they point to.

    The caller keeps the tensors until the call has been issued: an input is copied if it is not contiguous or does not
    start at a multiple of `alignment` bytes. With `scalars`, (3,) float32 and contiguous, the kernel reads temperatures
    and coefficient from there. Without, they become numbers on the host.
    """
    tensors = [
        None if t is None else t.contiguous() for t in (problem.query, problem.key, problem.queue, problem.batch_keys)
    ]
    if alignment > 1:
        tensors = [None if t is None else aligned(t, alignment) for t in tensors]
    query_views, batch, dim = problem.query.shape
    query, key, queue, batch_keys = [matrix(t, dim) for t in tensors]
    on_host = scalars is None
    fields = {
        "query": query,
        "key": key,
        "queue": queue,
        "batch_keys": batch_keys,
        "query_views": query_views,
        "key_views": problem.key.shape[0],
        "batch_key_views": problem.batch_key_views,
        "batch": batch,
        "dim": dim,
        "row_offset": problem.row_offset,
        "same_views": problem.same_views,
        "zero_logit": problem.zero_logit,
        "needs_gradient": problem.needs_gradient,
        "needs_target": problem.needs_target,
        "temperature": float(problem.temperature) if on_host else 0.0,
        "target_temperature": float(problem.target_temperature) if on_host else 0.0,
        "coefficient": float(problem.coefficient) if on_host else 0.0,
        "scalars": 0 if scalars is None else scalars.data_ptr(),
    }
    return fields, tensors


def pack_solution(solution: Solution) -> dict[str, Any]:
    """Return the fields of the C++ Solution."""
    gradient = solution.gradient
    return {
        "rows": solution.rows.data_ptr(),
        "gradient": 0 if gradient is None else gradient.data_ptr(),
        "gradient_type": 0 if gradient is None else TYPES[gradient.dtype],
        "target_entropy": solution.target_entropy.data_ptr(),
        "positive_probability": solution.positive_probability.data_ptr(),
        "mean": 0,
    }


def matrix(tensor: Tensor | None, dim: int) -> tuple[int, int, int]:
    """Return (address, type, rows) of a contiguous tensor (…, dim); rows is 0 without one."""
    return (0, 0, 0) if tensor is None else (tensor.data_ptr(), TYPES[tensor.dtype], tensor.numel() // dim)


def aligned(tensor: Tensor, alignment: int) -> Tensor:
    """Return a contiguous tensor, copied if it does not start at a multiple of `alignment` bytes."""
    return tensor if tensor.data_ptr() % alignment == 0 else tensor.clone()
