"""The launch of the pass as a pure function of sizes, dtype and GPU: block sizes, warps, stages, splits."""

from dataclasses import dataclass

import torch

SPLITS_AT_A_TIME = 8  # of a row's partial outputs, loaded together where they are summed


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
    splits: int


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def warps_of_a_row(dim: int) -> int:
    """For a kernel that holds a few rows at a time."""
    return max(1, next_power_of_2(dim) // 256)


def warps_of_a_merge(dim: int) -> int:
    """For SPLITS_AT_A_TIME rows at a time."""
    return min(4, max(1, next_power_of_2(dim) // 64))


def split_dim(dim: int) -> tuple[int, int]:
    """(head, tail) with the least padding: 192 → 128 + 64, 384 → 256 + 128; one power of two where that is as good."""
    whole = max(16, next_power_of_2(dim))
    head = whole // 2
    tail = max(16, next_power_of_2(dim - head)) if head >= 64 else whole
    return (head, tail) if head + tail < whole else (whole, 0)


def choose(**k) -> Config:
    head, tail = split_dim(k["dim"])
    blocks = -(-k["student_rows"] // 64) + -(-k["teacher_rows"] // 64)
    return Config(head, tail, 64, 32, 4, 2, 2)
