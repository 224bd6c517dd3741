"""KeyQueue.enqueue in one launch (and a tiny one for the cursor): normalise, cast, write to the ring."""

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
    buffer, cursor, rows, size, dropped, buffer_stride, row_stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """Grid: (rows that stay,). Row i of all goes to (cursor + i) mod size; the first `dropped` would be overwritten."""
    row = tl.program_id(0) + dropped
    column = tl.arange(0, BLOCK_D)
    in_row = column < D
    values = tl.load(rows + tl.cast(row, tl.int64) * row_stride + column, mask=in_row, other=0.0).to(tl.float32)
    if NORMALIZE:
        norm = tl.sqrt(tl.sum(values * values, 0))
        # a NaN must stay one, which a maximum might drop
        values = values / tl.where(norm < SMALLEST_NORM, SMALLEST_NORM, norm)
    to = (tl.load(cursor) + row) % size
    store_rounded(buffer + to * buffer_stride + column, values, in_row)


@triton.jit(do_not_specialize=["count"])
def advance_kernel(cursor, count, size):
    """A launch of its own: all rows must have been written from where the cursor was."""
    tl.store(cursor, (tl.load(cursor) + count) % size)


@torch.no_grad()
def enqueue(keys_buffer: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    """Overwrites the oldest rows of the ring and advances the cursor, all on the current stream.

    Args:
        keys_buffer: (K, D), in place; any floating dtype.
        cursor: () int64 on the same device, the row that is overwritten next; in place, not read by the host.
        rows: (N, D) or (U, N, D) of any floating dtype and strides; of more than K rows the newest K stay.
        normalize: L2-normalise the rows first, in float32, as torch.nn.functional.normalize does.

    Raises:
        ValueError: a shape or a device does not fit, or the ring's rows are not dense.
    """
    size, dim = keys_buffer.shape
    if rows.dim() not in (2, 3) or rows.shape[-1] != dim:
        raise ValueError(f"rows has shape {tuple(rows.shape)}, expected (N, {dim}) or (views, N, {dim})")
    if cursor.shape != () or cursor.dtype != torch.int64:
        raise ValueError(f"cursor has shape {tuple(cursor.shape)} and dtype {cursor.dtype}, expected () and int64")
    for name, tensor in (("cursor", cursor), ("rows", rows)):
        if tensor.device != keys_buffer.device:
            raise ValueError(f"{name} is on {tensor.device}, expected {keys_buffer.device}, where the ring is")
    if keys_buffer.stride(-1) != 1:
        raise ValueError(f"keys_buffer has strides {keys_buffer.stride()}, expected dense rows")
    rows = rows.reshape(-1, dim)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    count = len(rows)
    if count == 0:
        return
    device = keys_buffer.device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        enqueue_kernel[(min(count, size),)](
            keys_buffer, cursor, rows, size, max(count - size, 0), keys_buffer.stride(0), rows.stride(0),
            D=dim, BLOCK_D=next_power_of_2(dim), NORMALIZE=normalize, num_warps=warps_of_a_row(dim),
        )  # fmt: skip
        advance_kernel[(1,)](cursor, count, size, num_warps=1)
