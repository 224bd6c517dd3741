"""The loss and the enqueue as torch.library operators over every backend: what torch.compile and fake tensors see.

Eager calls of sce_loss reach the backends directly (api.py), without the dispatcher's overhead.
"""

from typing import Any, get_type_hints

import torch
from torch import Tensor

from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.cuda import own_workspaces
from sce_fast.loss.problem import Problem, Scalar, Solution

# The operator's arguments are the fields of Problem and the backend's name.
SCHEMA_TYPES: dict[Any, str] = {Tensor: "Tensor", Tensor | None: "Tensor?", Scalar: "float", int: "int", bool: "bool"}
ARGUMENTS = {name: SCHEMA_TYPES[kind] for name, kind in get_type_hints(Problem).items()} | {"backend": "str"}
SCALARS = ("temperature", "target_temperature", "coefficient")
SCHEMA = (
    f"solve({', '.join(f'{kind} {name}' for name, kind in ARGUMENTS.items())}) "
    "-> (Tensor rows, Tensor gradient, Tensor target_entropy, Tensor positive_probability)"
)
Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

_library = torch.library.Library("sce_fast", "DEF")
_library.define(SCHEMA)
_library.define("enqueue(Tensor(a!) keys, Tensor(b!) cursor, Tensor rows, bool normalize, str backend) -> ()")


def solve(query: Tensor, problem: Problem, backend: str) -> Solution:
    """Solve a checked problem through the operator.

    `query` (V, N, D) replaces the problem's own detached query; it may require a gradient.
    """
    arguments = {name: getattr(problem, name) for name in ARGUMENTS if name != "backend"}
    if problem.scalars is not None:  # a float argument cannot be a tensor; the operator reads `scalars` instead
        arguments.update(dict.fromkeys(SCALARS, 0.0))
    arguments.update(query=query, backend=backend)
    rows, gradient, target_entropy, positive_probability = torch.ops.sce_fast.solve(**arguments)
    return Solution(
        rows=rows,
        gradient=gradient if problem.needs_gradient else None,
        target_entropy=target_entropy,
        positive_probability=positive_probability,
    )


def _unpacked(values: tuple[Any, ...]) -> tuple[Problem, str]:
    """Return the problem and the backend's name; the dispatcher passes arguments by position."""
    arguments = dict(zip(ARGUMENTS, values, strict=True))
    backend = arguments.pop("backend")
    if arguments["scalars"] is not None:
        arguments.update(zip(SCALARS, arguments["scalars"].unbind(), strict=True))
    return Problem(**arguments), backend


def _solve(*values: Any) -> Outputs:
    problem, backend = _unpacked(values)
    with own_workspaces():
        solution = BACKENDS[backend].solve(problem)
    gradient = problem.query.new_empty(0) if solution.gradient is None else solution.gradient
    return solution.rows, gradient, solution.target_entropy, solution.positive_probability


def _fake_solve(*values: Any) -> Outputs:
    problem, _ = _unpacked(values)
    query, dtype = problem.query, problem.compute_dtype
    gradient = query.new_empty(0)
    if problem.needs_gradient:
        gradient = torch.empty_like(query, memory_format=torch.contiguous_format)
    rows = query.new_empty(query.shape[1], dtype=dtype)
    return rows, gradient, query.new_empty(problem.key.shape[:2], dtype=dtype), torch.empty_like(rows)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_rows: Tensor, *others: Any) -> tuple[Tensor | None, ...]:
    (gradient,) = ctx.saved_tensors
    of_query = scaled_gradient(gradient, grad_rows[:, None].to(gradient.dtype))
    return tuple(of_query if name == "query" else None for name in ARGUMENTS)


def scaled_gradient(gradient: Tensor, factor: Tensor) -> Tensor:
    """Return the saved gradient times a 0-dim tensor, or (N, 1) of its dtype for (V, N, D): the whole backward pass."""
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


def _enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool, backend: str) -> None:
    BACKENDS[backend].enqueue(keys, cursor, rows, normalize=normalize)


_library.impl("solve", _solve, "CompositeExplicitAutograd")
torch.library.register_fake("sce_fast::solve", _fake_solve, lib=_library)
torch.library.register_autograd("sce_fast::solve", _backward, setup_context=_keep_gradient, lib=_library)

_library.impl("enqueue", _enqueue, "CompositeExplicitAutograd")
torch.library.register_fake("sce_fast::enqueue", lambda keys, cursor, rows, normalize, backend: None, lib=_library)
