"""Random rows for tests."""

import torch
from torch import Tensor

from sce_fast.util.rows import unit_rows


def rows(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random unit rows of this shape, the same for a seed whatever the dtype up to rounding."""
    return unit_rows(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
