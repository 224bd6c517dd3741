"""Rows of unit length."""

import torch
from torch import Tensor, nn


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows (…, D) divided by their norm, in float32 or wider.

    Autocast is off here, because in float16 the squares of a long row overflow.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return nn.functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
