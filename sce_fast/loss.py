"""sce_loss and SCELoss: argument checks, choice of the backend, autograd."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sce_fast.backends import choose
from sce_fast.problem import Problem, Solution
from sce_fast.rows import unit_rows

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Scalar = float | Tensor


@dataclass(frozen=True)
class SCEStatistics:
    """What the loss knows about its targets; nothing here carries a gradient."""

    rows: Tensor  # (N,) the loss of each row, averaged over terms
    target_entropy: Tensor  # (N,) or (U, N), as the key: entropy of the similarities' softmax, in nats
    effective_positives: Tensor  # same shape: exp(entropy), the number of candidates that share the target
    positive_probability: Tensor  # (N,) what the student gives its own key, averaged over terms
    backend: str  # the one that computed it


def sce_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor | None = None,
    *,
    batch_keys: Tensor | None = None,
    row_offset: int = 0,
    temperature: Scalar = 0.1,
    target_temperature: Scalar = 0.05,
    coefficient: Scalar = 0.5,
    positive_target: Literal["excluded", "zero_logit"] = "excluded",
    normalize: bool = False,
    backend: str = "auto",
    reduction: Literal["mean", "none"] = "mean",
    return_statistics: bool = False,
) -> Any:
    """Similarity Contrastive Estimation: cross-entropy of a student against its momentum teacher's soft targets.

    The target puts λ on the own key and spreads 1 − λ over the other candidates by softmax(key·candidate / τ_m);
    the prediction is softmax(query·candidate / τ) over all candidates and the own key (Denize et al., WACV 2023,
    equations 3 to 6). λ = 1 is InfoNCE, λ = 0 is ReSSL with its ceiling term.

    Args:
        query: (N, D), or (V, N, D) for views; the only input that gets a gradient.
        key: (N, D) or (U, N, D). With both 3-D there is a term for every pair of different views (v ≠ u), and view v
            of the query is view v of the key; otherwise for every pair. The loss is the mean over terms.
        queue: (K, D) past keys, shared by all terms.
        batch_keys: (M, D), or (U, M, D) for a key with views: keys of the whole batch, further candidates of a term.
        row_offset: own key of row i stands at batch_keys[…, row_offset + i, :] and is left out of its candidates.
        temperature, target_temperature, coefficient: τ > 0, τ_m > 0 and λ in [0, 1]; floats, or 0-dim tensors on the
            query's device, whose values are not checked (that would wait for the device).
        positive_target: "excluded" leaves the own key out of the teacher's softmax, as the paper has it; "zero_logit"
            gives it a logit of 0, as the official code does.
        normalize: L2-normalise query and key here, in float32 or wider; otherwise the caller has done so.
        backend: "auto" or a name of sce_fast.backends.BACKENDS.
        reduction: "mean" for a scalar, "none" for (N,), the mean over terms of each row.
        return_statistics: also return SCEStatistics.

    Returns:
        The loss in float32 (float64 where an input is float64), or (loss, SCEStatistics).

    Raises:
        ValueError, TypeError: an argument is out of range, of the wrong shape, device or dtype, or leaves no
            candidate or no term; the message names it, its value and what was expected.
            With SCE_FAST_CHECK=1 in the environment also when rows are not normalised (this waits for the device).
        RuntimeError: on a second derivative.

    Example:
        >>> query = torch.nn.functional.normalize(torch.randn(8, 128, requires_grad=True), dim=-1)
        >>> key, queue = (torch.nn.functional.normalize(torch.randn(n, 128), dim=-1) for n in (8, 4096))
        >>> sce_loss(query, key, queue, coefficient=0.5).backward()
    """
    _check_tensors(query, key, queue, batch_keys)
    for name, value in (("temperature", temperature), ("target_temperature", target_temperature)):
        if _is_number(name, value, query.device) and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: expected a finite number > 0")
    if _is_number("coefficient", coefficient, query.device) and not 0 <= coefficient <= 1:
        raise ValueError(f"coefficient={coefficient}: expected a number in [0, 1]")
    _check_choice("positive_target", positive_target, ("excluded", "zero_logit"))
    _check_choice("reduction", reduction, ("mean", "none"))
    if normalize:
        query, key = unit_rows(query), unit_rows(key)

    problem = Problem(
        query=query.detach() if query.dim() == 3 else query.detach()[None],
        key=key.detach() if key.dim() == 3 else key.detach()[None],
        queue=None if queue is None else queue.detach(),
        batch_keys=_batch_keys_per_view(batch_keys, key, row_offset),
        row_offset=row_offset,
        terms=_terms(query, key),
        temperature=_detached(temperature),
        target_temperature=_detached(target_temperature),
        coefficient=_detached(coefficient),
        positive_target=positive_target,
        needs_gradient=torch.is_grad_enabled() and query.requires_grad,
        needs_target=return_statistics or isinstance(coefficient, Tensor) or coefficient < 1,
    )
    if os.environ.get("SCE_FAST_CHECK") == "1":
        _check_norms(problem)
    chosen = choose(backend, problem)
    solution = chosen.solve(problem)
    rows = _AttachGradient.apply(query, solution) if problem.needs_gradient else solution.rows
    loss = rows.mean() if reduction == "mean" else rows
    if not return_statistics:
        return loss
    entropy = solution.target_entropy if key.dim() == 3 else solution.target_entropy[0]
    return loss, SCEStatistics(solution.rows, entropy, entropy.exp(), solution.positive_probability, chosen.name)


class SCELoss(nn.Module):
    """sce_loss with its settings kept; call it with (query, key, queue) and, where needed, batch_keys and row_offset.

    Takes temperature, target_temperature, coefficient, positive_target, normalize, backend and reduction of sce_loss
    and returns what it returns.

    Example:
        >>> loss = SCELoss(target_temperature=0.07)
        >>> loss(query, key, queue).backward()
    """

    def __init__(
        self,
        *,
        temperature: Scalar = 0.1,
        target_temperature: Scalar = 0.05,
        coefficient: Scalar = 0.5,
        positive_target: Literal["excluded", "zero_logit"] = "excluded",
        normalize: bool = False,
        backend: str = "auto",
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "temperature": temperature,
            "target_temperature": target_temperature,
            "coefficient": coefficient,
            "positive_target": positive_target,
            "normalize": normalize,
            "backend": backend,
            "reduction": reduction,
        }

    def forward(self, query: Tensor, key: Tensor, queue: Tensor | None = None, **options: Any) -> Any:
        return sce_loss(query, key, queue, **{**self.settings, **options})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class _AttachGradient(torch.autograd.Function):
    """Hangs the gradient that the forward pass has computed onto the query.

    Only that gradient is saved, so the queue may be overwritten between loss and backward.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, solution: Solution) -> Tensor:
        ctx.save_for_backward(solution.gradient)
        ctx.query_shape = query.shape
        return solution.rows.clone()

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # (V, N, D)
        gradient = (gradient * grad_rows[:, None].to(gradient.dtype)).view(ctx.query_shape)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _RefuseSecondDerivative.apply(gradient, torch.zeros((), requires_grad=True))
        return gradient, None


class _RefuseSecondDerivative(torch.autograd.Function):
    """Raises when the gradient is differentiated, which would otherwise be silently zero."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("sce_loss has no second derivative: its gradient is computed in the forward pass")


def _terms(query: Tensor, key: Tensor) -> tuple[tuple[int, int], ...]:
    same_views = query.dim() == 3 and key.dim() == 3
    queries = range(len(query) if query.dim() == 3 else 1)
    keys = range(len(key) if key.dim() == 3 else 1)
    terms = tuple((v, u) for u in keys for v in queries if not (same_views and v == u))
    if not terms:
        raise ValueError(
            f"no term: query {tuple(query.shape)} and key {tuple(key.shape)} hold the same single view; "
            "give a second view, or 2-D tensors for a pair of different views"
        )
    return terms


def _batch_keys_per_view(batch_keys: Tensor | None, key: Tensor, row_offset: int) -> Tensor | None:
    if batch_keys is None:
        if row_offset != 0:
            raise ValueError(f"row_offset={row_offset} points into batch_keys, which is None")
        return None
    own_rows, available = key.shape[-2], batch_keys.shape[-2]
    if not 0 <= row_offset <= available - own_rows:
        raise ValueError(
            f"row_offset={row_offset}: expected 0 to {available - own_rows}, since the own keys of {own_rows} rows "
            f"stand at batch_keys[…, row_offset + i, :] and batch_keys has {available} rows"
        )
    views = len(key) if key.dim() == 3 else 1
    return batch_keys.detach().expand(views, *batch_keys.shape[-2:])


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
    if others <= 0:
        raise ValueError(
            "no candidate beside the own key: give a queue of at least one row, or batch_keys of at least two"
        )


def _detached(value: Scalar) -> Scalar:
    return value.detach() if isinstance(value, Tensor) else value


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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
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
