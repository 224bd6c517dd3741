"""Values that depend on a flag on the device, without a host synchronisation."""

import torch
from torch import Tensor


def unless(skip: Tensor, value: float, masked: float, like: Tensor) -> Tensor:
    """Return value, or masked if skip is true, as a 0-dim tensor with the device and dtype of `like`.

    Both numbers are filled in on the device: no copy from the host is needed.
    """
    return torch.where(skip, like.new_full((), masked), like.new_full((), value))
