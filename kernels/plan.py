"""The launch of the pass as a pure function of sizes, dtype and GPU: block sizes, warps, stages, splits.

ptxas compiles the table's entries without spilling a register for every variant (`compiled` in compile_offline.py lists
them), except for three tf32 products of rows longer than 256. None has been timed on a GPU.
"""

from dataclasses import dataclass

import torch

SPLITS_AT_A_TIME = 8  # of a row's partial outputs, loaded together where they are summed
# Bytes of shared memory that one block may have.
SHARED_MEMORY = {
    80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 103: 227 * 1024,
    110: 227 * 1024, 120: 99 * 1024, 121: 99 * 1024,
}  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """What the choice needs to know of a GPU."""

    capability: tuple[int, int]
    shared_memory: int  # bytes that one block may have
    processors: int


@dataclass(frozen=True)
class Config:
    """One launch of sce_forward_kernel."""

    head: int  # the rows' D values are taken as head + tail, powers of two
    tail: int  # 0 for none
    block_rows: int
    block_candidates: int
    num_warps: int
    num_stages: int
    splits: int = 1


@dataclass(frozen=True)
class _Entry:
    """Block sizes for rows of up to `dim` values."""

    dim: int
    block_rows: int
    block_candidates: int
    num_warps: int
    num_stages: int


# By the tensor cores' instruction (of sm_80 to 89 and 120; of sm_90; of sm_100) and by the kind of product.
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
        _Entry(512, 32, 32, 8, 2),  # 64 rows of sums would not fit the 512 columns of tensor memory
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
    ("mma", "exact"): [
        _Entry(256, 16, 32, 8, 2),
        _Entry(512, 16, 16, 8, 2),
    ],
    ("wgmma", "exact"): [
        _Entry(512, 16, 16, 8, 2),
    ],
    ("tcgen05", "exact"): [
        _Entry(512, 16, 16, 8, 2),
    ],
}


def choose(
    *,
    dim: int,
    product: torch.dtype,
    precision: str,
    gpu: Gpu,
    student_rows: int,
    teacher_rows: int,
    parts: int,
    candidates: tuple[int, int],
) -> Config:
    """The launch for rows of D = dim values.

    Args:
        product: The dtype of the products.
        precision: What tl.dot is told: "tf32" for float32 by one product on tensor cores.
        student_rows, teacher_rows: Rows of one part; they share no block.
        parts: Segments of batch keys with rows of their own (U), or 1.
        candidates: Rows of the batch keys and of the queue that a row meets.
    """
    kind = "16-bit" if product.itemsize == 2 else ("tf32" if precision == "tf32" else "exact")
    entry = next(entry for entry in TABLE[instruction(gpu.capability), kind] if dim <= entry.dim)
    block_rows = entry.block_rows
    while block_rows > 64 and max(student_rows, teacher_rows) <= block_rows // 2:
        block_rows //= 2  # few rows: no block that is mostly empty
    head, tail = split_dim(dim, halves=kind != "tf32")
    stages = entry.num_stages
    row_bytes = (head + tail) * product.itemsize
    while stages > 2 and (block_rows + stages * entry.block_candidates) * row_bytes > gpu.shared_memory:
        stages -= 1
    blocks = parts * (-(-student_rows // block_rows) + -(-teacher_rows // block_rows))
    tiles = sum(-(-count // entry.block_candidates) for count in candidates)
    slots = gpu.processors * (8 // entry.num_warps)
    return Config(
        head, tail, block_rows, entry.block_candidates, entry.num_warps, stages, choose_splits(blocks, slots, tiles)
    )


def shared_memory(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that one block may have; the least known for a GPU that is not in the list."""
    return SHARED_MEMORY.get(10 * capability[0] + capability[1], min(SHARED_MEMORY.values()))


def instruction(capability: tuple[int, int]) -> str:
    """The instruction by which a GPU's tensor cores are used, as PTX names it."""
    return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(capability[0], "mma")


def choose_splits(blocks: int, slots: int, tiles: int) -> int:
    """Into how many shares the candidates are split, so that `blocks` row blocks fill `slots` places on the GPU.

    The time goes with the waves of blocks a share; a further split must save 3 % to be worth its partial results.
    """
    best, best_time = 1, float(-(-blocks // slots))
    for splits in range(2, min(max(4, slots // blocks), tiles // 2) + 1):
        time = -(-blocks * splits // slots) / splits
        if time < 0.97 * best_time:
            best, best_time = splits, time
    return best


def split_dim(dim: int, halves: bool = True) -> tuple[int, int]:
    """(head, tail) with the least padding: 192 → 128 + 64, 384 → 256 + 128.

    With `halves` also 256 → 128 + 128 and 512 → 256 + 256: two narrow accumulators take fewer registers.
    """
    whole = max(16, next_power_of_2(dim))
    if whole < 64:
        return whole, 0
    head = whole // 2
    tail = max(16, next_power_of_2(dim - head))
    return (head, tail) if tail < head or (halves and whole >= 256) else (whole, 0)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def warps_of_a_row(dim: int) -> int:
    """For a kernel that holds a few rows at a time; two for D from 257 to 511 would spill a register."""
    return max(1, next_power_of_2(dim) // 512)


def warps_of_a_merge(dim: int) -> int:
    """For SPLITS_AT_A_TIME rows at a time."""
    return min(4, max(1, next_power_of_2(dim) // 64))
