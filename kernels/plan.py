"""Plan the launch of a forward pass from sizes, dtype and GPU: block sizes, warps, stages and splits.

ptxas compiles every entry of TABLE without spilled registers (`variants` in compile_offline.py lists the kernels). The
exception is "tf32x3" for rows of more than 256 values. No entry has been timed on a GPU.
"""

from dataclasses import dataclass

import torch

SPLITS_AT_A_TIME = 8  # partial outputs of a row that combine_splits_kernel loads together
# Compute capability → bytes of shared memory that a block may have.
SHARED_MEMORY = {
    80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 103: 227 * 1024,
    110: 227 * 1024, 120: 99 * 1024, 121: 99 * 1024,
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """The properties of a GPU that a plan depends on."""

    capability: tuple[int, int]
    shared_memory: int  # bytes that a block may have
    processors: int  # streaming multiprocessors


@dataclass(frozen=True)
class Launch:
    """The launch of one forward_pass_kernel."""

    head: int  # a row of D values is loaded as head + tail values, both powers of two
    tail: int  # 0 for none
    block_rows: int
    block_candidates: int
    num_warps: int
    num_stages: int
    splits: int = 1


@dataclass(frozen=True)
class _Entry:
    """The block sizes for rows of up to `dim` values."""

    dim: int
    block_rows: int
    block_candidates: int
    num_warps: int
    num_stages: int


# (instruction of the tensor cores, kind of product) → entries by dim. "mma" serves sm_80 to sm_89 and sm_120, "wgmma"
# sm_90, "tcgen05" sm_100.
TABLE: dict[tuple[str, str], list[_Entry]] = {
    ("mma", "16-bit"): [
        _Entry(64, 128, 64, 8, 3),
        _Entry(256, 64, 64, 8, 3),
        _Entry(384, 32, 64, 8, 2),
        _Entry(512, 32, 32, 8, 2),
    ],
    ("wgmma", "16-bit"): [
        _Entry(64, 128, 128, 8, 3),
        _Entry(128, 128, 128, 8, 2),
        _Entry(256, 128, 64, 8, 3),
        _Entry(512, 64, 32, 8, 3),
    ],
    ("tcgen05", "16-bit"): [
        _Entry(128, 128, 128, 8, 2),
        _Entry(256, 128, 64, 8, 3),
        _Entry(384, 64, 64, 8, 2),
        _Entry(512, 32, 32, 8, 2),  # the sums of 64 rows exceed the 512 columns of tensor memory
    ],
    ("mma", "tf32"): [
        _Entry(64, 64, 64, 8, 2),
        _Entry(128, 64, 32, 8, 2),
        _Entry(256, 32, 32, 8, 2),
        _Entry(384, 32, 16, 8, 2),
        _Entry(512, 16, 16, 8, 2),
    ],
    ("wgmma", "tf32"): [
        _Entry(128, 32, 64, 8, 2),
        _Entry(256, 32, 64, 8, 2),
        _Entry(512, 32, 16, 8, 2),
    ],
    ("tcgen05", "tf32"): [
        _Entry(128, 64, 32, 8, 2),
        _Entry(256, 64, 32, 8, 2),
        _Entry(512, 32, 32, 8, 2),
    ],
    ("mma", "tf32x3"): [
        _Entry(256, 16, 32, 8, 2),
        _Entry(512, 16, 16, 8, 2),
    ],
    ("wgmma", "tf32x3"): [
        _Entry(512, 16, 16, 8, 2),
    ],
    ("tcgen05", "tf32x3"): [
        _Entry(512, 16, 16, 8, 2),
    ],
}


def plan_forward_pass(
    *,
    dim: int,
    product: torch.dtype,
    precision: str,
    gpu: Gpu,
    student_rows: int,
    teacher_rows: int,
    batch_key_views: int,
    candidates: tuple[int, int],
) -> Launch:
    """Return the launch of a forward pass.

    Args:
        dim: Values of a row, 1 to 512.
        product: The dtype of the products.
        precision: input_precision of tl.dot for float32 products: "tf32" or "tf32x3".
        gpu: The GPU that the kernel runs on.
        student_rows, teacher_rows: Rows of one batch-key view. No block holds rows of both sides.
        batch_key_views: 1 where all rows share the batch keys, U where each key view has its own, 0 for none.
        candidates: Rows of the batch keys and rows of the queue that a row is compared with.

    Example:
        >>> plan_forward_pass(
        ...     dim=256, product=torch.bfloat16, precision="ieee", gpu=Gpu((9, 0), 227 * 1024, 132),
        ...     student_rows=256, teacher_rows=256, batch_key_views=0, candidates=(0, 65536),
        ... ).splits
        33
    """
    kind = "16-bit" if product.itemsize == 2 else ("tf32" if precision == "tf32" else "tf32x3")
    entry = next(entry for entry in TABLE[instruction(gpu.capability), kind] if dim <= entry.dim)
    block_rows = entry.block_rows
    while block_rows > 64 and max(student_rows, teacher_rows) <= block_rows // 2:
        block_rows //= 2  # with few rows a large block would be mostly empty
    head, tail = split_dim(dim, halves=kind != "tf32")
    stages = entry.num_stages
    row_bytes = (head + tail) * product.itemsize
    while stages > 2 and (block_rows + stages * entry.block_candidates) * row_bytes > gpu.shared_memory:
        stages -= 1
    blocks = max(1, batch_key_views) * (-(-student_rows // block_rows) + -(-teacher_rows // block_rows))
    tiles = sum(-(-count // entry.block_candidates) for count in candidates)
    slots = gpu.processors * (8 // entry.num_warps)
    return Launch(
        head, tail, block_rows, entry.block_candidates, entry.num_warps, stages, choose_splits(blocks, slots, tiles)
    )


def shared_memory(capability: tuple[int, int]) -> int:
    """Return the bytes of shared memory that a block may have, the smallest known number for an unlisted GPU."""
    return SHARED_MEMORY.get(10 * capability[0] + capability[1], min(SHARED_MEMORY.values()))


def instruction(capability: tuple[int, int]) -> str:
    """Return the PTX name of the instruction that drives the tensor cores of a GPU."""
    return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(capability[0], "mma")


def rounds_in_pairs(capability: tuple[int, int], block_candidates: int) -> bool:
    """Return whether weights are rounded to bfloat16 in pairs by inline PTX.

    Before Blackwell, ptxas converts values that are also summed one by one: F2F, in the unit of the exponentials. For
    Blackwell it finds the pairs itself, and the inline PTX costs instructions. With 128 candidates the kernel for
    Hopper would spill registers.
    """
    return capability < (10, 0) and block_candidates <= 64


def choose_splits(blocks: int, slots: int, tiles: int) -> int:
    """Return the number of splits of the candidates with which `blocks` row blocks fill the `slots` of the GPU.

    Time is proportional to the waves of blocks divided by the splits. Each additional split must save 3 % of it to pay
    for its partials.
    """
    best, best_time = 1, float(-(-blocks // slots))
    for splits in range(2, min(max(4, slots // blocks), tiles // 2) + 1):
        time = -(-blocks * splits // slots) / splits
        if time < 0.97 * best_time:
            best, best_time = splits, time
    return best


def split_dim(dim: int, halves: bool = True) -> tuple[int, int]:
    """Return the (head, tail) with the least padding: 192 → 128 + 64, 384 → 256 + 128.

    With `halves` also 256 → 128 + 128 and 512 → 256 + 256, because two narrow accumulators take fewer registers.
    """
    whole = max(16, next_power_of_2(dim))
    if whole < 64:
        return whole, 0
    head = whole // 2
    tail = max(16, next_power_of_2(dim - head))
    return (head, tail) if tail < head or (halves and whole >= 256) else (whole, 0)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def warps_of_a_row(dim: int) -> int:
    """Return num_warps of a kernel that holds a few rows at a time; with two, D from 257 to 511 would spill."""
    return max(1, next_power_of_2(dim) // 512)


def warps_of_splits(dim: int) -> int:
    """Return num_warps of combine_splits_kernel, which holds SPLITS_AT_A_TIME rows at a time."""
    return min(4, max(1, next_power_of_2(dim) // 64))
