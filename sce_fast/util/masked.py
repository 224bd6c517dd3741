"""Values that a condition on the device chooses, without the host reading it."""

import torch
from torch import Tensor


def unless(skip: Tensor, value: float, masked: float, like: Tensor) -> Tensor:
    """() value, or masked where skip is true, on the device and of the dtype of `like`; nothing is copied there."""
    return torch.where(skip, like.new_full((), masked), like.new_full((), value))
