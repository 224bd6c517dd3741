"""The guard: a loss or gradient that is not finite masks the step on the device, before it does any damage.

Nothing here makes the host wait. The trainer reads `failed_step` when it reads the loss anyway; see diagnosis.py.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sce_fast.distributed import world_size

FIRST_SCALE = 65536.0
GROWTH_INTERVAL = 2000  # steps without an overflow before the scale doubles, as in torch.amp.GradScaler


class Guard(nn.Module):
    """Scales the loss, checks losses and gradients, and masks a step that must not change anything.

    In float32 and bfloat16 the first loss or gradient that is not finite fails the run: this step and every later one
    are masked on all ranks until the host reads `failed_step`. In float16, gradients overflow when the scale is too
    large: such a step is masked and the scale halved, as in torch.amp.GradScaler. Only a loss that is not finite, or a
    scale below 1, fails the run.

    Args:
        scales: multiply the loss by a scale that follows the overflows, for float16.

    Example:
        >>> guard.guarded(loss).backward()
        >>> skip = guard.check([p.grad for p in parameters], step)
        >>> optimizer.step(skip=skip)
    """

    scale: Tensor  # () float32, of the loss
    steps_since_overflow: Tensor  # () int32
    failed_step: Tensor  # () int64, the first step that failed, or -1; not part of a checkpoint
    local_failure: Tensor  # () bool, a loss of this rank was not finite in that step

    def __init__(self, *, scales: bool = False) -> None:
        super().__init__()
        self.scales = scales
        self.register_buffer("scale", torch.tensor(FIRST_SCALE if scales else 1.0))
        self.register_buffer("steps_since_overflow", torch.zeros((), dtype=torch.int32))
        self.register_buffer("failed_step", torch.tensor(-1), persistent=False)
        self.register_buffer("local_failure", torch.tensor(False), persistent=False)

    def guarded(self, loss: Tensor) -> Tensor:
        """Return the loss to differentiate: scaled, and with a gradient of NaN if the loss is not finite.

        Once gradients are averaged over the ranks, every rank sees a bad loss of any rank, without another collective.
        """
        finite = loss.detach().isfinite()
        self.local_failure |= ~finite & (self.failed_step < 0)
        return loss * torch.where(finite, self.scale, torch.nan).to(loss.dtype)

    def check(self, gradients: list[Tensor], step: int | Tensor) -> Tensor:
        """Remove the scale from the gradients, in place; return () bool on the device, true to mask this step.

        Args:
            gradients: of this step.
            step: its number, or a () int64 tensor on the device.
        """
        found = torch.zeros(1, device=self.scale.device)
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, self.scale.reciprocal().view(1))
        skip = found[0] > 0
        if self.scales:
            torch._amp_update_scale_(self.scale, self.steps_since_overflow, found, 2.0, 0.5, GROWTH_INTERVAL)
            failure = self.local_failure.to(torch.int32)
            if world_size() > 1:  # overflows put NaN into gradients too, so they do not show a failure
                dist.all_reduce(failure, dist.ReduceOp.MAX)
            failure = (failure > 0) | (self.scale < 1)
        else:
            failure = skip
        failure = failure & (self.failed_step < 0)
        self.failed_step.copy_(torch.where(failure, step, self.failed_step))
        return skip | (self.failed_step >= 0)
