"""What every backend of the loss is given and what it gives back."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Scalar = float | Tensor


@dataclass(frozen=True)
class Problem:
    """A call of the loss with its arguments checked and its views explicit; only the query gets a gradient."""

    query: Tensor  # (V, N, D)
    key: Tensor  # (U, N, D)
    queue: Tensor | None  # (K, D)
    batch_keys: Tensor | None  # (B, M, D): B is 1 where all key views share them, else U
    row_offset: int  # own key of row i stands at batch_keys[:, row_offset + i]
    same_views: bool  # index v of query and key is the same view, and v = u is no term
    temperature: Scalar
    target_temperature: Scalar
    coefficient: Scalar
    scalars: Tensor | None  # (3,) float32 [temperature, target_temperature, coefficient] where any of them is a tensor
    zero_logit: bool  # positive_target
    needs_gradient: bool
    needs_target: bool  # False where λ = 1 and nobody asks for statistics: the teacher's side is not needed

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of sums and softmax: that of the widest input, float32 at least."""
        dtype = torch.float32
        for tensor in (self.query, self.key, self.queue, self.batch_keys):
            if tensor is not None:
                dtype = torch.promote_types(dtype, tensor.dtype)
        return dtype

    def terms(self) -> Iterator[tuple[int, int]]:
        """Pairs (v, u) of a query view and a key view."""
        for u in range(len(self.key)):
            for v in range(len(self.query)):
                if not (self.same_views and v == u):
                    yield v, u


@dataclass(frozen=True)
class Solution:
    """What a backend returns; per-row quantities are means over the terms."""

    rows: Tensor  # (N,) loss
    gradient: Tensor | None  # (V, N, D) d rows.sum() / d query, in the query's dtype
    target_entropy: Tensor  # (U, N) nats; undefined without needs_target
    positive_probability: Tensor  # (N,)


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
    """The problem that sce_loss poses with these arguments; raises what sce_loss documents."""
    _check_tensors(query, key, queue, batch_keys)
    _check_row_offset(batch_keys, key.shape[-2], row_offset)
    for name, value in (("temperature", temperature), ("target_temperature", target_temperature)):
        if _is_number(name, value, query.device) and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: expected a finite number > 0")
    if _is_number("coefficient", coefficient, query.device) and not 0 <= coefficient <= 1:
        raise ValueError(f"coefficient={coefficient}: expected a number in [0, 1]")
    check_choice("positive_target", positive_target, ("excluded", "zero_logit"))
    problem = Problem(
        query=views(query.detach()),
        key=views(key.detach()),
        queue=None if queue is None else queue.detach(),
        batch_keys=None if batch_keys is None else views(batch_keys.detach()),
        row_offset=row_offset,
        same_views=query.dim() == 3 and key.dim() == 3,
        temperature=_detached(temperature),
        target_temperature=_detached(target_temperature),
        coefficient=_detached(coefficient),
        scalars=_device_scalars(temperature, target_temperature, coefficient, query.device),
        zero_logit=positive_target == "zero_logit",
        needs_gradient=torch.is_grad_enabled() and query.requires_grad,
        needs_target=needs_statistics or isinstance(coefficient, Tensor) or coefficient < 1,
    )
    if os.environ.get("SCE_FAST_CHECK") == "1":
        _check_norms(problem)
    return problem


def views(rows: Tensor) -> Tensor:
    """(N, D) → (1, N, D)"""
    return rows if rows.dim() == 3 else rows[None]


def _detached(value: Scalar) -> Scalar:
    return value.detach() if isinstance(value, Tensor) else value


def _device_scalars(*values: Any) -> Tensor | None:
    """The three scalars (3,) in one place on the device, if any of them is a tensor there; nothing waits for it."""
    *scalars, device = values
    if not any(isinstance(value, Tensor) for value in scalars):
        return None
    tensors = [v.detach() if isinstance(v, Tensor) else torch.full((), v, device=device) for v in scalars]
    return torch.stack([tensor.to(torch.float32) for tensor in tensors])


def _check_row_offset(batch_keys: Tensor | None, own_rows: int, row_offset: int) -> None:
    if batch_keys is None:
        if row_offset != 0:
            raise ValueError(f"row_offset={row_offset} points into batch_keys, which is None")
        return
    available = batch_keys.shape[-2]
    if not 0 <= row_offset <= available - own_rows:
        raise ValueError(
            f"row_offset={row_offset}: expected 0 to {available - own_rows}, since the own keys of {own_rows} rows "
            f"stand at batch_keys[…, row_offset + i, :] and batch_keys has {available} rows"
        )


def _check_tensors(query: Tensor, key: Tensor, queue: Tensor | None, batch_keys: Tensor | None) -> None:
    given = {"query": query, "key": key, "queue": queue, "batch_keys": batch_keys}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None or name in ("query", "key")}
    ranks = {"query": (2, 3), "key": (2, 3), "queue": (2,), "batch_keys": (2, 3)}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(map(str, DTYPES))}")
        if tensor.dim() not in ranks[name]:
            expected = " or ".join("(N, D)" if rank == 2 else "(views, N, D)" for rank in ranks[name])
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
        if tensor.device != query.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {query.device}, where the query is")
        if tensor.shape[-1] != query.shape[-1]:
            raise ValueError(f"{name} has rows of {tensor.shape[-1]} values, expected {query.shape[-1]} as the query")
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
            "no candidate beside the own key: give a queue of at least one row, or batch_keys of at least two"
        )


def _is_number(name: str, value: Scalar, device: torch.device) -> bool:
    """True for a number, False for a 0-dim tensor on the device, an error otherwise."""
    if isinstance(value, Tensor):
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
        if not worst <= 0.02:  # what rounding to bfloat16 can do to a unit row, and some
            raise ValueError(
                f"{name} has a row whose norm is off 1 by {worst:.3g}, expected unit rows or normalize=True"
            )
