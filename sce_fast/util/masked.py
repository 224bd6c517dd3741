"""Values that depend on a flag on the device, without a host synchronisation."""

import torch
from torch import Tensor


def unless(skip: Tensor, value: float | Tensor, masked: float, like: Tensor) -> Tensor:
    """Return value, or masked if skip is true, as a 0-dim tensor with the device and dtype of `like`.

    Numbers are filled in on the device: no copy from the host is needed. A 0-dim float64 tensor on the device gives the
    same bits as the number that it holds.
    """
    chosen = value.to(like.dtype) if isinstance(value, Tensor) else like.new_full((), value)
    return torch.where(skip, like.new_full((), masked), chosen)
