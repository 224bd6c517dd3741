"""KeyQueue.enqueue in two launches: one normalises, casts and writes the rows, one advances the cursor."""

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from sce_fast.kernels.plan import next_power_of_2, warps_of_a_row
from sce_fast.kernels.rounding import store_rounded

SMALLEST_NORM = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@triton.jit(do_not_specialize=["dropped"])
def enqueue_kernel(
    keys, cursor, new_rows, size, dropped, key_stride, row_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Write row i to (cursor + i) mod size, without the first `dropped` rows. Grid: (remaining rows,)."""
    row = tl.program_id(0) + dropped
    column = tl.arange(0, BLOCK_D)
    in_row = column < D
    values = tl.load(new_rows + tl.cast(row, tl.int64) * row_stride + column, mask=in_row, other=0.0).to(tl.float32)
    if NORMALIZE:
        norm = tl.sqrt(tl.sum(values * values, 0))
        # tl.maximum might drop a NaN; tl.where keeps it
        values = values / tl.where(norm < SMALLEST_NORM, SMALLEST_NORM, norm)
    to = (tl.load(cursor) + row) % size
    store_rounded(keys + to * key_stride + column, values, in_row)


@triton.jit(do_not_specialize=["count"])
def advance_cursor_kernel(cursor, count, size):
    """Advance the cursor. This is a separate launch because every row is placed by the old cursor."""
    tl.store(cursor, (tl.load(cursor) + count) % size)


@torch.no_grad()
def enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    """Overwrite the oldest rows of the ring and advance the cursor, all on the current stream.

    Args:
        keys: Ring (K, D) of any floating dtype with dense rows, changed in place.
        cursor: () int64 on the same device, the row to overwrite next. Changed in place, never read by the host.
        rows: (N, D) or (U, N, D) of any floating dtype and strides. Of more than K rows the newest K stay.
        normalize: L2-normalise the rows first, in float32, as torch.nn.functional.normalize does.

    Raises:
        ValueError: A shape or a device does not fit, or the rows of the ring are not dense.

    Example:
        >>> enqueue(queue.keys, queue.cursor, torch.randn(256, 128, device="cuda"), normalize=True)
    """
    size, dim = keys.shape
    if rows.dim() not in (2, 3) or rows.shape[-1] != dim:
        raise ValueError(f"rows has shape {tuple(rows.shape)}, expected (N, {dim}) or (views, N, {dim})")
    if cursor.shape != () or cursor.dtype != torch.int64:
        raise ValueError(f"cursor has shape {tuple(cursor.shape)} and dtype {cursor.dtype}, expected () and int64")
    for name, tensor in (("cursor", cursor), ("rows", rows)):
        if tensor.device != keys.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {keys.device}, where the ring is")
    if keys.stride(-1) != 1:
        raise ValueError(f"keys has strides {keys.stride()}, expected dense rows (last stride 1)")
    rows = rows.reshape(-1, dim)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    count = len(rows)
    if count == 0:
        return
    device = keys.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        enqueue_kernel[(min(count, size),)](
            keys, cursor, rows, size, max(count - size, 0), keys.stride(0), rows.stride(0),
            D=dim, BLOCK_D=next_power_of_2(dim), NORMALIZE=normalize, num_warps=warps_of_a_row(dim),
        )  # fmt: skip
        advance_cursor_kernel[(1,)](cursor, count, size, num_warps=1)
