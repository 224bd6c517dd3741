"""The loss and the enqueue as torch.library operators over all backends: what torch.compile and fake tensors see.

Eager calls reach the same backends without the dispatcher (loss.py), which saves them its time.
"""

from typing import Any

import torch
from torch import Tensor

from sce_fast.kernels import solve as triton_backend
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import Problem, Solution, widest
from sce_fast.util.rows import unit_rows

SCHEMA = (
    "sce_forward(Tensor query, Tensor key, Tensor? queue, Tensor? batch_keys, Tensor? scalars, float temperature, "
    "float target_temperature, float coefficient, int row_offset, bool same_views, bool zero_logit, "
    "bool needs_gradient, bool needs_target, str backend) "
    "-> (Tensor rows, Tensor gradient, Tensor target_entropy, Tensor positive_probability)"
)
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

_library = torch.library.Library("sce_fast", "DEF")
_library.define(SCHEMA)
_library.define("enqueue(Tensor(a!) keys, Tensor(b!) cursor, Tensor rows, bool normalize) -> ()")


def call(query: Tensor, problem: Problem, backend: str) -> Solution:
    """The operator on a checked problem; `query` (V, N, D) stands for the problem's own and may carry a graph."""
    scheduled = problem.scalars is not None
    rows, gradient, entropy, probability = torch.ops.sce_fast.sce_forward(
        query,
        problem.key,
        problem.queue,
        problem.batch_keys,
        problem.scalars,
        *((0.0, 0.0, 0.0) if scheduled else (problem.temperature, problem.target_temperature, problem.coefficient)),
        problem.row_offset,
        problem.same_views,
        problem.zero_logit,
        problem.needs_gradient,
        problem.needs_target,
        backend,
    )
    return Solution(rows, gradient if problem.needs_gradient else None, entropy, probability)


def _run(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    batch_keys: Tensor | None,
    scalars: Tensor | None,
    temperature: float,
    target_temperature: float,
    coefficient: float,
    row_offset: int,
    same_views: bool,
    zero_logit: bool,
    needs_gradient: bool,
    needs_target: bool,
    backend: str,
) -> Outputs:
    tau, tau_m, lambda_ = (temperature, target_temperature, coefficient) if scalars is None else scalars.unbind()
    problem = Problem(
        query, key, queue, batch_keys, row_offset, same_views, tau, tau_m, lambda_, scalars, zero_logit,
        needs_gradient, needs_target,
    )  # fmt: skip
    solution = BACKENDS[backend].solve(problem)
    gradient = query.new_empty(0) if solution.gradient is None else solution.gradient
    return solution.rows, gradient, solution.target_entropy, solution.positive_probability


def _shapes(query: Tensor, key: Tensor, queue: Tensor | None, batch_keys: Tensor | None, *rest: Any) -> Outputs:
    dtype = widest(query, key, queue, batch_keys)
    needs_gradient = rest[-3]
    rows = query.new_empty(query.shape[1], dtype=dtype)
    gradient = torch.empty_like(query, memory_format=torch.contiguous_format) if needs_gradient else query.new_empty(0)
    return rows, gradient, query.new_empty(key.shape[:2], dtype=dtype), torch.empty_like(rows)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_rows: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    return (scaled_gradient(gradient, grad_rows[:, None].to(gradient.dtype)), *(None,) * 13)


def scaled_gradient(gradient: Tensor, factor: Tensor) -> Tensor:
    """The whole backward pass: (V, N, D) times a 0-dim tensor or (N, 1) of the same dtype."""
    gradient = gradient * factor
    if torch.is_grad_enabled():  # create_graph=True
        gradient = _RefuseSecondDerivative.apply(gradient, torch.zeros((), requires_grad=True))
    return gradient


class _RefuseSecondDerivative(torch.autograd.Function):
    """Raises when the gradient is differentiated, which would otherwise be silently zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("sce_loss has no second derivative: its gradient is computed in the forward pass")


def _enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    """Rows (N, D) into the ring keys (K, D) at the cursor, which moves on; plain PyTorch."""
    if normalize:
        rows = unit_rows(rows)
    size = len(keys)
    dropped = max(len(rows) - size, 0)
    offsets = torch.arange(dropped, len(rows), device=keys.device)
    keys.index_copy_(0, (cursor + offsets) % size, rows[dropped:].to(keys.dtype))
    cursor.copy_((cursor + len(rows)) % size)


def _enqueue_on_gpu(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    if not triton_backend.INSTALLED or keys.dtype == torch.float64:
        return _enqueue(keys, cursor, rows, normalize)
    from sce_fast.kernels.enqueue import enqueue

    return enqueue(keys, cursor, rows, normalize)


_library.impl("enqueue", _enqueue, "CompositeExplicitAutograd")
_library.impl("enqueue", _enqueue_on_gpu, "CUDA")
torch.library.register_fake("sce_fast::enqueue", lambda keys, cursor, rows, normalize: None, lib=_library)

_library.impl("sce_forward", _run, "CompositeExplicitAutograd")
torch.library.register_fake("sce_fast::sce_forward", _shapes, lib=_library)
torch.library.register_autograd("sce_fast::sce_forward", _backward, setup_context=_keep_gradient, lib=_library)
