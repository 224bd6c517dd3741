"""Repeated calls of sce_loss on a CPU: a call with the sizes and settings of an earlier one skips the checks.

For a few rows, the checks and the choice of the backend take longer than the kernel. Their outcome depends on sizes,
dtypes and settings alone, so the fields that the kernel gets are kept for each combination of these.
"""

import os
from typing import Any

import torch
from torch import Tensor

from sce_fast.loss import cpu
from sce_fast.loss.pack import pack
from sce_fast.loss.problem import Mean, Problem
from sce_fast.native import CPU

MOST = 256  # combinations kept; more are not expected in a process

Signature = tuple[Any, ...]
_known: dict[Signature, dict[str, Any]] = {}


def signature(query: Any, key: Any, queue: Any, settings: tuple[Any, ...]) -> Signature | None:
    """Return what the outcome of the checks depends on, or None for a call that is always checked.

    `settings` holds the temperatures and the coefficient, which must be floats, and then further settings.
    """
    if not (type(query) is type(key) is type(queue) is Tensor and query.is_cpu and key.is_cpu and queue.is_cpu):
        return None
    if not (type(settings[0]) is type(settings[1]) is type(settings[2]) is float):
        return None  # the values of tensors change
    if os.environ.get("SCE_FAST_CHECK") == "1" or CPU.module is None:
        return None
    gradient = query.requires_grad and torch.is_grad_enabled()
    return query.shape, query.dtype, key.shape, key.dtype, queue.shape, queue.dtype, gradient, settings


def keep(signature: Signature, problem: Problem) -> None:
    """Keep the fields of a checked problem that the backend "cpu" has solved."""
    if len(_known) == MOST:
        _known.clear()
    fields, _ = pack(problem)
    _known[signature] = fields


def solve_mean(signature: Signature, query: Tensor, key: Tensor, queue: Tensor) -> Mean | None:
    """Return what cpu.solve_mean returns, with a gradient of the query's shape, or None if no such call was kept."""
    fields = _known.get(signature)
    if fields is None or not (query.is_contiguous() and key.is_contiguous() and queue.is_contiguous()):
        return None
    fields = {  # only addresses differ
        **fields,
        "query": (query.data_ptr(), *fields["query"][1:]),
        "key": (key.data_ptr(), *fields["key"][1:]),
        "queue": (queue.data_ptr(), *fields["queue"][1:]),
    }
    return cpu.solve_fields_for_mean(fields, query.shape, cpu.product_dtype(fields["dim"], queue.dtype))
