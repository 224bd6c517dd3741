"""Running averages over the steps: of the student's weights in the momentum encoder, and of the evaluated backbone."""

import torch
from torch import Tensor, nn

from sce_fast.util.masked import unless


@torch.no_grad()
def move_average(
    average: list[Tensor], values: list[Tensor], momentum: float | Tensor, *, skip: Tensor | None = None
) -> None:
    """Set every tensor a of the average to m · a + (1 − m) · v with its value v.

    Args:
        average, values: lists of floating-point tensors of the same shapes.
        momentum: m, a number or a () float64 tensor on the device.
        skip: () bool on the device; if true, nothing changes.
    """
    skip = average[0].new_zeros((), dtype=torch.bool) if skip is None else skip
    torch._foreach_mul_(average, unless(skip, momentum, 1.0, average[0]))
    torch._foreach_add_(average, torch._foreach_mul(values, unless(skip, 1 - momentum, 0.0, average[0])))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, momentum: float, *, skip: Tensor | None = None) -> None:
    """Move a copy of a network towards it: parameters and running statistics. Counters are copied.

    Args:
        average: copy of the network.
        network: the network that is trained.
        momentum: m; the average reaches back about 1 / (1 − m) steps.
        skip: () bool on the device; if true, no parameter changes.

    Example:
        >>> average = copy.deepcopy(network).eval()
        >>> optimizer.step(); update_average(average, network, 0.999)
    """
    averages = [*average.parameters(), *average.buffers()]
    values = [*network.parameters(), *network.buffers()]
    pairs = list(zip(averages, values, strict=True))
    moved = [(a, v) for a, v in pairs if v.is_floating_point()]
    copied = [(a, v) for a, v in pairs if not v.is_floating_point()]
    if moved:
        move_average([a for a, _ in moved], [v for _, v in moved], momentum, skip=skip)
    if copied:
        torch._foreach_copy_([a for a, _ in copied], [v for _, v in copied])
