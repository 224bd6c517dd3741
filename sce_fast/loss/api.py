"""sce_loss and SCELoss: argument checks, choice of the backend, autograd."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sce_fast.loss import operator
from sce_fast.loss.backends import choose
from sce_fast.loss.problem import Scalar, Solution, check_choice, checked_problem, views
from sce_fast.util.rows import unit_rows


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
        backend: "auto" or a name of sce_fast.loss.backends.BACKENDS.
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
    check_choice("reduction", reduction, ("mean", "none"))
    if normalize:
        query, key = unit_rows(query), unit_rows(key)
    problem = checked_problem(
        query,
        key,
        queue,
        batch_keys=batch_keys,
        row_offset=row_offset,
        temperature=temperature,
        target_temperature=target_temperature,
        coefficient=coefficient,
        positive_target=positive_target,
        needs_statistics=return_statistics,
    )
    chosen = choose(backend, problem)
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        solution = operator.call(views(query), problem, chosen.name)
        loss = solution.rows.mean() if reduction == "mean" else solution.rows
    else:
        solution = chosen.solve(problem)
        if problem.needs_gradient:
            loss = _AttachGradient.apply(query, solution, reduction)
        else:
            loss = solution.rows.mean() if reduction == "mean" else solution.rows
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
    def forward(ctx: Any, query: Tensor, solution: Solution, reduction: str) -> Tensor:
        ctx.save_for_backward(solution.gradient)
        ctx.query_shape = query.shape
        return solution.rows.mean() if reduction == "mean" else solution.rows.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # (V, N, D)
        factor = grad / gradient.shape[1] if grad.dim() == 0 else grad[:, None].to(gradient.dtype)
        return operator.scaled_gradient(gradient, factor).view(ctx.query_shape), None, None
