"""SGD and LARS with the parameter groups of the published recipes."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Momentum SGD whose step for each weight is scaled by trust · ‖w‖ / ‖g‖ (You et al., 2017), as SCE uses it.

    For parameters of two dimensions or more: g ← g + weight_decay · w, then g ← g · trust · ‖w‖ / ‖g‖ (1 where a norm
    is zero). One-dimensional parameters (biases, normalisation) get neither. Then v ← momentum · v + g, w ← w − lr · v.
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
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"{name}={value}: expected at least 0")
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = ...) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            scaled = [p for p in with_gradient if p.dim() > 1]
            plain = [p for p in with_gradient if p.dim() <= 1]
            if scaled:
                gradients = self._scaled_gradients(scaled, group["weight_decay"], group["trust"])
                self._descend(scaled, gradients, group)
            if plain:
                self._descend(plain, [p.grad for p in plain], group)
        return loss

    @staticmethod
    def _scaled_gradients(weights: list[Any], weight_decay: float, trust: float) -> tuple[Tensor, ...]:
        gradients = torch._foreach_add([w.grad for w in weights], weights, alpha=weight_decay)
        weight_norms = torch.stack(torch._foreach_norm(weights))
        gradient_norms = torch.stack(torch._foreach_norm(gradients))
        both = (weight_norms > 0) & (gradient_norms > 0)
        ratios = torch.where(both, trust * weight_norms / gradient_norms, 1.0)
        torch._foreach_mul_(gradients, list(ratios.unbind()))
        return gradients

    def _descend(self, weights: list[Tensor], gradients: Iterable[Any], group: dict[str, Any]) -> None:
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        velocities = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, list(gradients))
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


def build_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters.

    Args:
        name: "sgd" (weight decay on every parameter, as the official CIFAR recipe) or "lars".

    Raises:
        ValueError: unknown name.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=True)
    if name == "lars":
        return LARS(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    raise ValueError(f"optimizer={name!r}: expected 'sgd' or 'lars'")
