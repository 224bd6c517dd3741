"""Rows of unit length."""

import torch

from sce_fast.util.rows import unit_rows


def test_unit_rows_of_long_float16_rows():
    long_row = torch.full((1, 64), 1000.0, dtype=torch.float16)  # its square is beyond float16
    torch.testing.assert_close(unit_rows(long_row).norm(dim=1), torch.ones(1))
