"""SGD and LARS with the parameter groups of the published recipes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sce_fast.util.masked import unless


class SGD(torch.optim.Optimizer):
    """Momentum SGD whose step can be masked on the device.

    g ← g + weight_decay · w, v ← momentum · v + g, w ← w − lr · v, which is torch.optim.SGD with dampening 0. The fused
    kernel of torch.optim.SGD can be masked too, but on a CPU it assumes that weight and gradient have equal strides,
    which channels-last tensors need not have.

    Args:
        params: parameters or groups.
        lr: learning rate; applied after the momentum.
        momentum, weight_decay: as above.

    Raises:
        ValueError: a negative value.

    Example:
        >>> optimizer.step(skip=guard.check(gradients, step))
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0, **more: float
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **more}
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, skip: Tensor | None = None) -> float | None:  # type: ignore[override]
        """Take one step; if skip, a () bool on the device, is true, weights and velocities keep their bits."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            weights.sort(key=lambda w: w.dim() <= 1)  # LARS treats matrices and vectors differently
            if weights:
                self._descend(weights, self._gradients(weights, group), group, skip)
        return loss

    def _gradients(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Return the gradients to add to the velocities, as new tensors."""
        gradients = [w.grad for w in weights if w.grad is not None]
        return list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))

    def _descend(self, weights: list[Tensor], gradients: list[Tensor], group: dict[str, Any], skip: Any) -> None:
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        velocities = [self.state[w]["momentum_buffer"] for w in weights]
        if skip is None:
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])
            return
        for gradient in gradients:  # multiplying by 0 would keep a NaN
            gradient.masked_fill_(skip, 0)
        like = weights[0]
        torch._foreach_mul_(velocities, unless(skip, group["momentum"], 1.0, like))
        torch._foreach_add_(velocities, gradients)
        torch._foreach_add_(weights, torch._foreach_mul(velocities, unless(skip, -group["lr"], 0.0, like)))


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


def build_optimizer(model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float) -> SGD:
    """Build the optimizer of the trainable parameters.

    Args:
        name: "sgd" (weight decay on every parameter, as in the official CIFAR recipe) or "lars".

    Raises:
        ValueError: unknown name.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "lars":
        return LARS(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    raise ValueError(f"optimizer={name!r}: expected 'sgd' or 'lars'")
