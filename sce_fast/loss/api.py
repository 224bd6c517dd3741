"""sce_loss and SCELoss: check the arguments, choose the backend, attach the gradient."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sce_fast.loss import operator, repeat
from sce_fast.loss.backends import choose
from sce_fast.loss.problem import Scalar, Solution, check_choice, check_tensors, checked_problem, views
from sce_fast.util.rows import unit_rows


@dataclass(frozen=True)
class SCEStatistics:
    """Statistics of one call of the loss; none of them carries a gradient."""

    rows: Tensor  # (N,) loss of each row, averaged over terms
    target_entropy: Tensor  # (N,), or (U, N) for a 3-D key: entropy of the softmax over the similarities, in nats
    effective_positives: Tensor  # same shape: exp(entropy), the number of candidates that share the target
    positive_probability: Tensor  # (N,) the student's probability of the own key, averaged over terms
    backend: str  # the backend that computed the loss


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
    """Return the SCE loss: the cross-entropy of the student against its momentum teacher's soft targets.

    The target puts λ on the own key and spreads 1 − λ over the other candidates by softmax(key·candidate / τ_m). The
    prediction is softmax(query·candidate / τ) over all candidates, own key included (Denize et al., WACV 2023,
    equations 3 to 6). λ = 1 is InfoNCE; λ = 0 is ReSSL with its ceiling term.

    Args:
        query: (N, D), or (V, N, D) for views; the only input that gets a gradient. All others are taken as constants.
        key: (N, D) or (U, N, D). If both are 3-D, index v of the query and of the key is the same view, and there is
            one term for every pair of different views (v ≠ u); otherwise one for every pair. The loss is the mean over
            terms.
        queue: (K, D) past keys, shared by all terms.
        batch_keys: (M, D), or (U, M, D) for a key with views: keys of the global batch, further candidates of a term.
        row_offset: the own key of row i is batch_keys[…, row_offset + i, :], which is left out of its candidates.
        temperature: τ > 0. τ, τ_m and λ are floats, or 0-dim tensors on the query's device that require no gradient;
            the values of tensors are not checked, since that would wait for the device.
        target_temperature: τ_m > 0; the default is the value of the official CIFAR-10 and Kinetics configs (the
            ImageNet configs use 0.07).
        coefficient: λ in [0, 1].
        positive_target: "excluded" leaves the own key out of the teacher's softmax, as in the paper; "zero_logit" gives
            it a logit of 0, as in the official code.
        normalize: L2-normalise query, key and batch_keys first, in float32 or wider; otherwise their rows must have
            norm 1. Rows of the queue must have norm 1 either way; KeyQueue normalises the keys that it stores.
        backend: "auto" or a name of sce_fast.loss.names.BACKEND_NAMES.
        reduction: "mean" for a scalar, "none" for (N,), the mean over terms of each row.
        return_statistics: also return SCEStatistics.

    Returns:
        The loss in float32 (float64 if an input is float64), or (loss, SCEStatistics).

    Raises:
        ValueError, TypeError: an argument has a wrong value, shape, device or dtype, leaves no candidate or no term, or
            the named backend cannot serve the inputs. The message names the argument, its value and what was expected.
            With SCE_FAST_CHECK=1 in the environment, rows that are not normalised raise too; this waits for the device.
        RuntimeError: a second derivative is asked for.

    Example:
        >>> query = torch.nn.functional.normalize(torch.randn(8, 128, requires_grad=True), dim=-1)
        >>> key, queue = (torch.nn.functional.normalize(torch.randn(n, 128), dim=-1) for n in (8, 4096))
        >>> sce_loss(query, key, queue, coefficient=0.5).backward()
    """
    check_choice("reduction", reduction, ("mean", "none"))
    through_operator = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    takes_mean = reduction == "mean" and not through_operator
    repeated = None
    if takes_mean and batch_keys is None and not normalize and not return_statistics:
        settings = temperature, target_temperature, coefficient, positive_target, row_offset, backend
        repeated = repeat.signature(query, key, queue, settings)
        if repeated is not None and queue is not None:
            known = repeat.solve_mean(repeated, query, key, queue)
            if known is not None:
                return _with_gradient(query, *known)
    if normalize:
        check_tensors(query, key, queue, batch_keys)
        query, key = unit_rows(query), unit_rows(key)
        batch_keys = None if batch_keys is None else unit_rows(batch_keys)
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
    if through_operator:
        solution = operator.solve(views(query), problem, chosen.name)
        loss = solution.rows.mean() if reduction == "mean" else solution.rows
    elif takes_mean and chosen.solve_mean is not None:
        if repeated is not None:
            repeat.keep(repeated, problem)
        mean, gradient, statistics = chosen.solve_mean(problem)
        loss = _with_gradient(query, mean, gradient)
        if not return_statistics:
            return loss
        solution = Solution(statistics[0], gradient, statistics[2:], statistics[1])
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


def _with_gradient(query: Tensor, mean: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        return mean
    if gradient.dim() != query.dim():
        gradient = gradient.view(query.shape)
    return _AttachGradientOfMean.apply(query, mean, gradient)


class SCELoss(nn.Module):
    """Keep the settings of sce_loss; call the module with its tensors.

    The settings are keyword arguments of sce_loss with the same defaults. A call takes (query, key, queue) and any
    other argument of sce_loss, which replaces a setting of the same name, and returns what sce_loss returns.

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
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings: dict[str, Any] = settings

    def forward(self, query: Tensor, key: Tensor, queue: Tensor | None = None, **options: Any) -> Any:
        return sce_loss(query, key, queue, **{**self.settings, **options})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class _AttachGradient(torch.autograd.Function):
    """Attaches the gradient that the forward pass has computed to the query.

    Autograd saves this gradient alone, so the queue may be overwritten between loss and backward.
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


class _AttachGradientOfMean(torch.autograd.Function):
    """The same for a mean and its float32 gradient, which has the query's shape."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, mean: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return operator.scaled_gradient(gradient, grad), None, None
