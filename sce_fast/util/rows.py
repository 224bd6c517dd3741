"""Rows on the unit sphere."""

import torch
from torch import Tensor, nn


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (…, D) divided by their norm, in float32 at least.

    Under autocast in float16 the squares of a long row would overflow; here they do not.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return nn.functional.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=-1)
