"""Repeated calls of sce_loss on a CPU: a call with the sizes and settings of an earlier one skips the checks.

For a few rows, the checks and the choice of the backend take longer than the kernel. Their outcome depends on sizes,
dtypes and settings alone, so the problem that the kernel gets is kept for each combination of these.
"""

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sce_fast.loss import cpu
from sce_fast.loss.pack import pack
from sce_fast.loss.problem import Problem
from sce_fast.native import CPU

NUMBERS = (float, int)
MOST = 256  # combinations kept; more are not expected in a process

Signature = tuple[Any, ...]


class _Known(NamedTuple):
    problem: Any  # the C++ Problem, whose addresses of query, key and queue are replaced
    needs_gradient: bool
    product: torch.dtype


_known: dict[Signature, _Known] = {}


def signature(query: Any, key: Any, queue: Any, settings: tuple[Any, ...]) -> Signature | None:
    """Return what the outcome of the checks depends on, or None for a call that is always checked.

    `settings` holds the temperatures and the coefficient, which must be numbers, and then further settings.
    """
    if not (type(query) is type(key) is type(queue) is Tensor and query.is_cpu and key.is_cpu and queue.is_cpu):
        return None
    if not all(type(number) in NUMBERS for number in settings[:3]):
        return None  # the values of tensors change
    if os.environ.get("SCE_FAST_CHECK") == "1" or CPU.module is None:
        return None
    gradient = query.requires_grad and torch.is_grad_enabled()
    return query.shape, query.dtype, key.shape, key.dtype, queue.shape, queue.dtype, gradient, settings


def keep(signature: Signature, problem: Problem) -> None:
    """Keep a checked problem that the backend "cpu" has solved."""
    if signature in _known:  # it came with a tensor that is not contiguous
        return
    if len(_known) == MOST:
        _known.clear()
    fields, _ = pack(problem)
    packed = CPU.module.Problem(**fields)
    _known[signature] = _Known(packed, problem.needs_gradient, cpu.product_dtype_of(problem))


def solve_mean(signature: Signature, query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Return the mean and its gradient, of the query's shape, as cpu.solve_mean; or None if no such call was kept."""
    known = _known.get(signature)
    if known is None or not (query.is_contiguous() and key.is_contiguous() and queue.is_contiguous()):
        return None
    packed, needs_gradient, product = known
    mean = torch.empty((), dtype=torch.float32, device="cpu")
    gradient = torch.empty(query.shape, dtype=torch.float32, device="cpu") if needs_gradient else None
    CPU.module.solve_mean_again(
        packed,
        query.data_ptr(),
        key.data_ptr(),
        queue.data_ptr(),
        mean.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        cpu.BRGEMM[product],
        product == torch.bfloat16,
        torch.get_num_threads(),
    )
    return mean, gradient
