"""SGD, LARS and AdamW with steps that can be masked on the device.

A group may have lr_scale, a factor of its learning rate lr. The rate may be a () float64 tensor on the device, for
steps with skip: it gives the bits of the number that it holds.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.config import OptimizerConfig
from sce_fast.train.parameter_groups import parameter_groups
from sce_fast.util.masked import unless


class MaskableOptimizer(torch.optim.Optimizer):
    """An optimizer whose step can be masked on the device; subclasses update the weights of a group.

    Args:
        params: parameters or groups.
        settings: of the groups.

    Raises:
        ValueError: a negative setting.

    Example:
        >>> optimizer.step(skip=guard.check(gradients, step))
    """

    def __init__(self, params: Iterable[Any], **settings: float) -> None:
        for name, value in settings.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, skip: Tensor | None = None) -> float | None:  # type: ignore[override]
        """Take one step; if skip, a () bool on the device, is true, weights and state keep their bits."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            weights.sort(key=lambda w: w.dim() <= 1)  # LARS treats matrices and vectors differently
            if weights:
                self._update(weights, group, group["lr"] * group.get("lr_scale", 1.0), skip)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any], rate: Any, skip: Tensor | None) -> None:
        raise NotImplementedError

    def _state(self, entry: str, weights: list[Tensor], **like: Any) -> list[Tensor]:
        """Return this entry of each weight's state; it starts as zeros like the weight."""
        for w in weights:
            if entry not in self.state[w]:
                self.state[w][entry] = torch.zeros((), **like, device=w.device) if like else torch.zeros_like(w)
        return [self.state[w][entry] for w in weights]


class SGD(MaskableOptimizer):
    """Momentum SGD whose step can be masked on the device.

    g ← g + weight_decay · w, v ← momentum · v + g, w ← w − lr · v, or w ← w − lr · (g + momentum · v) with nesterov,
    which is torch.optim.SGD with dampening 0. The fused kernel of torch.optim.SGD can be masked too, but on a CPU it
    assumes that weight and gradient have equal strides, which channels-last tensors need not have.

    Args:
        params: parameters or groups.
        lr: learning rate; applied after the momentum.
        momentum, weight_decay, nesterov: as above.

    Raises:
        ValueError: a negative value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **more: float,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, **more)

    def _gradients(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Return the gradients to add to the velocities, as new tensors."""
        gradients = [w.grad for w in weights if w.grad is not None]
        return list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))

    def _update(self, weights: list[Tensor], group: dict[str, Any], rate: Any, skip: Tensor | None) -> None:
        gradients, velocities = self._gradients(weights, group), self._state("momentum_buffer", weights)
        if skip is None:
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            torch._foreach_add_(weights, self._directions(velocities, gradients, group), alpha=-rate)
            return
        for gradient in gradients:  # multiplying by 0 would keep a NaN
            gradient.masked_fill_(skip, 0)
        like = weights[0]
        torch._foreach_mul_(velocities, unless(skip, group["momentum"], 1.0, like))
        torch._foreach_add_(velocities, gradients)
        directions = self._directions(velocities, gradients, group)
        torch._foreach_add_(weights, torch._foreach_mul(directions, unless(skip, -rate, 0.0, like)))

    def _directions(self, velocities: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Return what the learning rate multiplies."""
        if not group["nesterov"]:
            return velocities
        return list(torch._foreach_add(gradients, velocities, alpha=group["momentum"]))


class LARS(SGD):
    """Momentum SGD with each weight's step scaled by trust · ‖w‖ / ‖g‖ (You et al., 2017), as SCE uses it.

    For parameters of two dimensions or more: g ← g + weight_decay · w, then g ← g · trust · ‖w‖ / ‖g‖ (1 where a norm
    is zero). One-dimensional parameters (biases, normalisation) get no weight decay and no scaling. Then
    v ← momentum · v + g, w ← w − lr · v.
    The norms stay on the device.

    Args:
        params: parameters or groups.
        lr: learning rate; applied after the momentum.
        momentum, weight_decay, trust: as above.

    Raises:
        ValueError: a negative value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay, trust=trust)

    def _gradients(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        scaled = [w for w in weights if w.dim() > 1]
        gradients = super()._gradients(scaled, group) if scaled else []
        if scaled:
            weight_norms = torch.stack(torch._foreach_norm(scaled))
            gradient_norms = torch.stack(torch._foreach_norm(gradients))
            both = (weight_norms > 0) & (gradient_norms > 0)
            ratios = torch.where(both, group["trust"] * weight_norms / gradient_norms, 1.0)
            torch._foreach_mul_(gradients, list(ratios.unbind()))
        return gradients + [w.grad.clone() for w in weights[len(scaled) :] if w.grad is not None]


class AdamW(MaskableOptimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), whose step can be masked on the device.

    m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g². In step t, w ← w − lr · weight_decay · w, then
    w ← w − lr · m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + eps), which is torch.optim.AdamW. The number t of steps stays
    on the device.

    Args:
        params: parameters or groups.
        lr: learning rate, also of the weight decay.
        beta1, beta2, eps, weight_decay: as above.

    Raises:
        ValueError: a negative value.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay)

    def _update(self, weights: list[Tensor], group: dict[str, Any], rate: Any, skip: Tensor | None) -> None:
        updates = self._updates(weights, group, rate, skip)
        if group["weight_decay"]:
            factor = 1 - rate * group["weight_decay"]
            torch._foreach_mul_(weights, factor if skip is None else unless(skip, factor, 1.0, weights[0]))
        if skip is not None:
            for update in updates:
                update.masked_fill_(skip, -0.0)
        torch._foreach_add_(weights, updates)

    def _updates(self, weights: list[Tensor], group: dict[str, Any], rate: Any, skip: Tensor | None) -> list[Tensor]:
        """Advance the moments and the number of steps; return what to add to the weights, as new tensors."""
        means, squares = self._state("exp_avg", weights), self._state("exp_avg_sq", weights)
        # float64, because 1 − β₂ᵗ of the first steps would lose four digits in float32
        steps = self._state("step", weights, dtype=torch.float64)
        gradients = [w.grad for w in weights if w.grad is not None]
        beta1, beta2 = group["beta1"], group["beta2"]
        keep1, keep2, one = beta1, beta2, torch.ones_like(steps[0])  # keep1 and keep2 are tensors too if skip is one
        if skip is not None:
            gradients = [g.masked_fill(skip, -0.0) for g in gradients]  # adding −0.0 changes no bit, not even of −0.0
            keep1, keep2 = (unless(skip, beta, 1.0, weights[0]) for beta in (beta1, beta2))
            one = unless(skip, 1.0, 0.0, steps[0])
        # as a list: with a single () tensor, _foreach_add_ reads it on the host
        torch._foreach_add_(steps, [one] * len(steps))
        torch._foreach_mul_(means, keep1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, keep2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        count = torch.stack(steps)
        rates = ((1 - beta1**count).reciprocal() * -rate).to(means[0].dtype)
        roots = (1 - beta2**count).sqrt().to(means[0].dtype)
        denominators = torch._foreach_div(torch._foreach_sqrt(squares), list(roots.unbind()))
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(means, denominators)
        torch._foreach_mul_(updates, list(rates.unbind()))
        return list(updates)


def build_optimizer(model: nn.Module, settings: OptimizerConfig, *, lr: float) -> MaskableOptimizer:
    """Build the optimizer of a model's trainable parameters.

    Args:
        model: see parameter_groups.
        settings: of the optimizer.
        lr: learning rate to begin with.

    Raises:
        ValueError: see parameter_groups.
    """
    groups = parameter_groups(model, settings)
    if settings.name == "adamw":
        return AdamW(groups, lr=lr, beta1=settings.momentum, beta2=settings.beta2)
    if settings.name == "lars":
        return LARS(groups, lr=lr, momentum=settings.momentum)
    return SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov)
