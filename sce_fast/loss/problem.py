"""The input and the output of every backend of the loss."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Scalar = float | Tensor
# With unit rows |logit| ≤ 1/τ. While the whole range of 2/τ · log₂e is at most this many bits, the largest possible
# logit can stand for a row's maximum: no weight that matters underflows. csrc/problem.h has the same number.
FIXED_SHIFT_BITS = 115.0
NORM_TOLERANCE = 0.02  # of a unit row: more than rounding it to bfloat16 can change its norm


@dataclass(slots=True)  # not frozen: constructing a frozen dataclass costs as much as all the checks
class Problem:
    """A call of the loss with checked arguments and explicit views; only the query gets a gradient."""

    query: Tensor  # (V, N, D)
    key: Tensor  # (U, N, D)
    queue: Tensor | None  # (K, D)
    batch_keys: Tensor | None  # (B, M, D): B is 1 if all key views share them, else U
    row_offset: int  # the own key of row i is batch_keys[:, row_offset + i]
    same_views: bool  # index v of query and key is the same view, so (v, v) is not a term
    temperature: Scalar
    target_temperature: Scalar
    coefficient: Scalar
    scalars: Tensor | None  # (3,) float32 [temperature, target_temperature, coefficient] if any of them is a tensor
    zero_logit: bool  # positive_target
    needs_gradient: bool
    needs_target: bool  # False if λ = 1 and nobody asks for statistics: no teacher rows are needed

    @property
    def batch_key_views(self) -> int:
        """1 if all key views share the batch keys, else U; 0 without batch keys."""
        return 0 if self.batch_keys is None else self.batch_keys.shape[0]

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of sums and softmax."""
        return widest(self.query, self.key, self.queue, self.batch_keys)

    def terms(self) -> Iterator[tuple[int, int]]:
        """Yield the pairs (v, u) of a query view and a key view."""
        for u in range(len(self.key)):
            for v in range(len(self.query)):
                if not (self.same_views and v == u):
                    yield v, u


@dataclass(slots=True)
class Solution:
    """The results of a backend; per-row quantities are means over the terms."""

    rows: Tensor  # (N,) loss
    gradient: Tensor | None  # (V, N, D) d rows.sum() / d query, in the query's dtype
    target_entropy: Tensor  # (U, N) nats; undefined without needs_target
    positive_probability: Tensor  # (N,)

    @classmethod
    def empty(cls, problem: Problem, gradient_dtype: torch.dtype | None = None) -> "Solution":
        """Return uninitialised float32 results on the query's device, whatever torch's defaults are.

        The gradient has the query's dtype or `gradient_dtype`; it is None if the problem needs none.
        """
        query, float32 = problem.query, torch.float32
        (_, batch, _), device = query.shape, query.device
        gradient = None
        if problem.needs_gradient:
            gradient = torch.empty(query.shape, dtype=gradient_dtype or query.dtype, device=device)
        return cls(
            rows=torch.empty(batch, dtype=float32, device=device),
            gradient=gradient,
            target_entropy=torch.empty(problem.key.shape[0], batch, dtype=float32, device=device),
            positive_probability=torch.empty(batch, dtype=float32, device=device),
        )


# The mean of the loss rows (), its float32 gradient (V, N, D) or None, and (2 + U, N) statistics: the loss rows, the
# positive probability and U rows of the target's entropy.
Mean = tuple[Tensor, Tensor | None, Tensor]


def checked_problem(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None,
    *,
    batch_keys: Tensor | None = None,
    row_offset: int = 0,
    temperature: Scalar = 0.1,
    target_temperature: Scalar = 0.05,
    coefficient: Scalar = 0.5,
    positive_target: str = "excluded",
    needs_statistics: bool = False,
) -> Problem:
    """Return the problem of sce_loss with these arguments; raise the errors that sce_loss documents."""
    check_tensors(query, key, queue, batch_keys)
    _check_row_offset(batch_keys, key.shape[-2], row_offset)
    numbers = _is_temperature("temperature", temperature, query.device)
    numbers &= _is_temperature("target_temperature", target_temperature, query.device)
    numbers &= _is_coefficient(coefficient, query.device)
    check_choice("positive_target", positive_target, ("excluded", "zero_logit"))
    problem = Problem(
        query=views(_constant(query)),
        key=views(_constant(key)),
        queue=None if queue is None else _constant(queue),
        batch_keys=None if batch_keys is None else views(_constant(batch_keys)),
        row_offset=row_offset,
        same_views=query.dim() == 3 and key.dim() == 3,
        temperature=_detached(temperature),
        target_temperature=_detached(target_temperature),
        coefficient=_detached(coefficient),
        scalars=None if numbers else _device_scalars(temperature, target_temperature, coefficient, query.device),
        zero_logit=positive_target == "zero_logit",
        needs_gradient=torch.is_grad_enabled() and query.requires_grad,
        needs_target=needs_statistics or isinstance(coefficient, Tensor) or coefficient < 1,
    )
    if os.environ.get("SCE_FAST_CHECK") == "1":
        _check_norms(problem)
    return problem


def check_tensors(query: Tensor, key: Tensor, queue: Tensor | None, batch_keys: Tensor | None) -> None:
    """Raise the errors that sce_loss documents for its tensors."""
    _check_rows("query", query, query, (2, 3))
    _check_rows("key", key, query, (2, 3))
    if queue is not None:
        _check_rows("queue", queue, query, (2,))
    if batch_keys is not None:
        _check_rows("batch_keys", batch_keys, query, (2, 3))
    if query.numel() == 0:
        raise ValueError(f"query has shape {tuple(query.shape)}, expected at least one row")
    if key.shape[-2] != query.shape[-2] or key.numel() == 0:
        raise ValueError(f"key has shape {tuple(key.shape)}, expected one key for each of {query.shape[-2]} query rows")
    if batch_keys is not None and batch_keys.dim() == 3 and (key.dim() != 3 or len(batch_keys) != len(key)):
        raise ValueError(
            f"batch_keys has shape {tuple(batch_keys.shape)}, expected (M, D), or (U, M, D) with one entry for each "
            f"view of a 3-D key; key has shape {tuple(key.shape)}"
        )
    others = (0 if queue is None else len(queue)) + (0 if batch_keys is None else batch_keys.shape[-2] - 1)
    if query.dim() == key.dim() == 3 and len(query) == len(key) == 1:
        raise ValueError(
            f"no term: query {tuple(query.shape)} and key {tuple(key.shape)} hold the same single view; "
            "give a second view, or 2-D tensors for a pair of different views"
        )
    if others <= 0:
        raise ValueError(
            "no candidate besides the own key: give a queue of at least one row, or batch_keys of at least two"
        )


def widest(*tensors: Tensor | None) -> torch.dtype:
    """Return float64 if any tensor has it, otherwise float32."""
    for tensor in tensors:  # any() over a generator takes twice as long
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def views(rows: Tensor) -> Tensor:
    """Return rows (N, D) as (1, N, D)."""
    return rows if rows.dim() == 3 else rows[None]


def _constant(rows: Tensor) -> Tensor:
    return rows.detach() if rows.requires_grad else rows


def _detached(value: Scalar) -> Scalar:
    return value.detach() if isinstance(value, Tensor) else value


def _device_scalars(*values: Any) -> Tensor:
    """Return the three scalars as one tensor (3,) on the device, without waiting for the device."""
    *scalars, device = values
    tensors = [v.detach() if isinstance(v, Tensor) else torch.full((), v, device=device) for v in scalars]
    return torch.stack([tensor.to(torch.float32) for tensor in tensors])


def _check_row_offset(batch_keys: Tensor | None, own_rows: int, row_offset: int) -> None:
    if batch_keys is None:
        if row_offset != 0:
            raise ValueError(f"row_offset={row_offset} points into batch_keys, which is None; expected 0")
        return
    available = batch_keys.shape[-2]
    if not 0 <= row_offset <= available - own_rows:
        raise ValueError(
            f"row_offset={row_offset}: expected 0 to {available - own_rows}, since the own key of row i is "
            f"batch_keys[…, row_offset + i, :] for {own_rows} rows, and batch_keys has {available} rows"
        )


def _check_rows(name: str, rows: Tensor, query: Tensor, ranks: tuple[int, ...]) -> None:
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} is a {type(rows).__name__}, expected a tensor")
    if rows.dtype not in DTYPES:
        raise TypeError(f"{name} has dtype {rows.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if rows.dim() not in ranks:
        expected = " or ".join("(N, D)" if rank == 2 else "(views, N, D)" for rank in ranks)
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected {expected}")
    if rows.device != query.device:
        raise ValueError(f"{name} is on {rows.device}, expected {query.device}, where the query is")
    if rows.shape[-1] != query.shape[-1]:
        raise ValueError(f"{name} has rows of {rows.shape[-1]} values, expected {query.shape[-1]} as in the query")


def _is_temperature(name: str, value: Scalar, device: torch.device) -> bool:
    number = _is_number(name, value, device)
    if number and not 0 < value < math.inf:
        raise ValueError(f"{name}={value}: expected a finite number > 0")
    return number


def _is_coefficient(value: Scalar, device: torch.device) -> bool:
    number = _is_number("coefficient", value, device)
    if number and not 0 <= value <= 1:
        raise ValueError(f"coefficient={value}: expected a number in [0, 1]")
    return number


def _is_number(name: str, value: Scalar, device: torch.device) -> bool:
    """Return True for a number, False for a 0-dim tensor on the device without gradient; raise an error otherwise."""
    if type(value) is float:
        return True
    if isinstance(value, Tensor):
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name} requires a gradient, which sce_loss computes for the query alone; expected a number or a "
                f"tensor without gradient, such as {name}.detach()"
            )
        if value.dim() != 0 or value.device != device:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} on {value.device}, expected a 0-dim tensor on {device}"
            )
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, expected a number or a 0-dim tensor")
    return True


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def _check_norms(problem: Problem) -> None:
    for name in ("query", "key", "queue", "batch_keys"):
        rows = getattr(problem, name)
        if rows is None or rows.numel() == 0:
            continue
        worst = (rows.to(problem.compute_dtype).norm(dim=-1) - 1).abs().max().item()
        if not worst <= NORM_TOLERANCE:
            raise ValueError(
                f"{name} has a row whose norm differs from 1 by {worst:.3g}; normalise the rows or pass normalize=True"
            )
