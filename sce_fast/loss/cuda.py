"""The loss and the enqueue on a GPU by the CUDA C++ kernels in csrc/cuda, for bfloat16 and float16 candidates."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sce_fast.loss.pack import TYPES, aligned, matrix, pack, pack_solution
from sce_fast.loss.problem import Problem, Solution
from sce_fast.native import CUDA
from sce_fast.util.dtypes import dtype_name

# `Kernel` in csrc/cuda/plan.h: the forward pass for the GPU's own architecture, or a particular one.
KERNELS = {"best": 0, "sm80": 1, "sm90": 2}
LARGEST_DIM, DIM_STEP = 256, 16  # kLargestDim and kDimStep in csrc/cuda/plan.h
ALIGNMENT = 16  # bytes; asynchronous copies move so many at a time
# Workspaces of at most so many bytes are kept for the next calls, and so many of them. At D 256 an H100 takes 17
# to 26 MB for up to 8192 rows.
KEPT_BYTES, KEPT_WORKSPACES = 64 << 20, 4
_workspaces: dict[tuple[int, int], Tensor] = {}  # by device and stream


class _Calls(threading.local):
    """How the calls of this thread take their workspaces."""

    alone = False  # whether each has one of its own


_calls = _Calls()


@dataclass(frozen=True)
class Tuning:
    """Choices of the Hopper kernel whose best value only a GPU tells; None is the default in csrc/cuda/plan.h.

    `turns`: the two warpgroups of a block take turns on the tensor cores. The value that is not the default exists for
    bfloat16 candidates, temperatures of at least 0.025 and D up to 128 or above 192.
    `uneven`: all multiprocessors get the same share of the candidates, which may begin in one block of rows and end in
    the next. Candidates that each key view has for itself are always cut evenly.
    `clusters`: thread blocks add their results in each other's shared memory before they store them. Compiled for the
    same inputs as the other value of `turns`, and not together with it; the cut is then even.
    """

    turns: bool | None = None
    uneven: bool | None = None
    clusters: bool | None = None


DEFAULT = Tuning()


def codes(tuning: Tuning) -> tuple[int, ...]:
    """Return the value of `Choice` in csrc/cuda/plan.h for each field, in the order of `Tuning` there."""
    return tuple(-1 if value is None else int(value) for value in (tuning.turns, tuning.uneven, tuning.clusters))


def architectures() -> str:
    """Return the architectures that the kernels were compiled for."""
    return str(CUDA.module.architectures)


def refuses(problem: Problem) -> str | None:
    """Return why the kernels cannot serve this problem, or None."""
    return _refuses_device(problem.query.device, "the inputs are") or refuses_inputs(problem)


def refuses_inputs(problem: Problem) -> str | None:
    """Return why the kernels cannot serve inputs of these sizes and dtypes on any GPU, or None."""
    if problem.compute_dtype == torch.float64:
        return "it computes in float32, and an input is float64; use backend='reference'"
    candidates = [t for t in (problem.queue, problem.batch_keys) if t is not None]
    kinds = {t.dtype for t in candidates}
    if torch.float32 in kinds or len(kinds) > 1:
        names = " and ".join(sorted(map(dtype_name, kinds)))
        return (
            f"its candidates are all bfloat16 or all float16, and here they are {names}; make the queue a "
            "KeyQueue(..., dtype=torch.bfloat16) and cast batch_keys to its dtype, or use another backend"
        )
    dim = problem.query.shape[-1]
    if dim > LARGEST_DIM:
        return f"rows have {dim} values, and it takes up to {LARGEST_DIM}; use backend='triton'"
    if dim % DIM_STEP != 0:
        return f"rows have {dim} values, and it takes multiples of {DIM_STEP} up to {LARGEST_DIM}; pad them with zeros"
    return None


def refuses_ring(keys: Tensor) -> str | None:
    """Return why `enqueue` cannot serve a ring `keys` (K, D), or None."""
    if keys.dtype not in TYPES:
        return f"it stores {', '.join(map(str, TYPES))}, and the keys are {keys.dtype}"
    return _refuses_device(keys.device, "the queue's tensors are")


def _refuses_device(device: torch.device, what: str) -> str | None:
    if CUDA.module is None:
        return CUDA.refusal
    if device.type != "cuda":
        return f"{what} on {device}; move them to a CUDA device or use another backend"
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs; use backend='reference'"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and 8.0 is needed; use backend='reference'"
    return None


def solve(problem: Problem, kernel: str = "best", tuning: Tuning = DEFAULT) -> Solution:
    """Return loss per row, gradient and statistics, without waiting for the device.

    `kernel` names the forward pass. "best" is "sm90" on a Hopper GPU (compute capability 9.0) and "sm80" on all others.
    `tuning` is for "sm90". Raises ValueError for "sm90" on another GPU, and for a choice that is not compiled.
    """
    device = problem.query.device
    scalars = None if problem.scalars is None else problem.scalars.contiguous()
    fields, _owners = pack(problem, scalars=scalars, alignment=ALIGNMENT)
    packed = CUDA.module.Problem(**fields)
    plan = _plan(packed, device, kernel, tuning)
    solution = Solution.empty(problem)
    results = CUDA.module.Solution(**pack_solution(solution))
    where = _where(device)
    workspace = _workspace(plan.workspace_bytes, device, where)
    CUDA.module.solve(packed, results, plan, workspace.data_ptr(), *where)
    return solution


def planned(problem: Problem, kernel: str = "best") -> Tuning:
    """Return the choices that `solve` makes for a problem by default; all False for kernels other than "sm90"."""
    fields, _owners = pack(problem, scalars=problem.scalars, alignment=ALIGNMENT)
    plan = _plan(CUDA.module.Problem(**fields), problem.query.device, kernel, DEFAULT)
    return Tuning(turns=plan.turns, uneven=plan.shared["blocks"] > 0, clusters=plan.shared["cluster"] > 1)


def _plan(packed: Any, device: torch.device, kernel: str, tuning: Tuning) -> Any:
    return CUDA.module.plan(packed, _limits(device), KERNELS[kernel], *codes(tuning))


def _workspace(size: int, device: torch.device, where: tuple[int, int]) -> Tensor:
    """Return memory of at least `size` bytes for the calls on a stream, which run one after another and can share it.

    Calls that a CUDA graph captures have memory of their own, from the pool of the graph, which may outlive this one.
    """
    alone = _calls.alone or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    kept = _workspaces.get(where)
    if kept is not None and kept.numel() >= size and not alone:
        return kept
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    if size <= KEPT_BYTES and not alone:
        _workspaces.pop(where, None)
        _workspaces[where] = workspace
        if len(_workspaces) > KEPT_WORKSPACES:
            del _workspaces[next(iter(_workspaces))]
    return workspace


@contextmanager
def own_workspaces() -> Iterator[None]:
    """Give each call of this thread memory of its own.

    torch.compile with CUDA graphs runs its operators once in the memory pool of a graph before it captures them, and
    takes it for an error if anything of that pool is kept.
    """
    before, _calls.alone = _calls.alone, True
    try:
        yield
    finally:
        _calls.alone = before


def enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool = False) -> None:
    """Overwrite the oldest rows of a ring as KeyQueue.enqueue does, in one pass over the new rows and without a sync.

    Args:
        keys: (K, D) on a CUDA device, float32, bfloat16 or float16, contiguous.
        cursor: () int64 on the same device, the row that is overwritten next; advanced there.
        rows: (R, D) of any of these dtypes. Of more than K rows the newest K stay.
        normalize: L2-normalise the rows first, in float32, as torch.nn.functional.normalize.

    Raises:
        RuntimeError: The kernels are not built, or a launch fails.
        ValueError: A shape, dtype or device does not fit.
    """
    if CUDA.module is None:
        raise RuntimeError(CUDA.refusal)
    if keys.dim() != 2 or rows.dim() != 2 or rows.shape[1] != keys.shape[1]:
        raise ValueError(f"rows has shape {tuple(rows.shape)}, expected (R, D) for keys of {tuple(keys.shape)}")
    if not keys.is_contiguous():
        raise ValueError(f"keys has strides {keys.stride()}, expected contiguous rows")
    if cursor.dim() != 0 or cursor.dtype != torch.int64:
        raise ValueError(f"cursor is {cursor.dtype} of shape {tuple(cursor.shape)}, expected a 0-dim int64 tensor")
    for name, tensor in (("keys", keys), ("rows", rows)):
        if tensor.dtype not in TYPES:
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(map(str, TYPES))}")
    for name, tensor in (("keys", keys), ("cursor", cursor), ("rows", rows)):
        if tensor.device.type != "cuda" or tensor.device != keys.device:
            raise ValueError(f"{name} is on {tensor.device}, expected one CUDA device for keys, cursor and rows")
    rows, dim = rows.contiguous(), keys.shape[1]
    CUDA.module.enqueue(
        matrix(keys, dim), dim, cursor.data_ptr(), matrix(rows, dim), normalize, *_where(keys.device)
    )  # fmt: skip


def tile_products(rows: Tensor, candidates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two products of one step of the Hopper kernel, each alone, so that a test can tell which is wrong.

    Args:
        rows: (64, D) on a GPU of compute capability 9.0, in the candidates' dtype, D a multiple of 16 up to 256.
        candidates: (R, D), bfloat16 or float16, R at most the kernel's tile for D.
        weights: (64, tile) in the candidates' dtype; weights beyond R meet zeros.

    Returns:
        rows · candidatesᵀ (64, tile) and weights · candidates (64, D), float32.
    """
    dim, tile = rows.shape[1], weights.shape[1]
    if tile != tile_of_sm90(dim):
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (64, {tile_of_sm90(dim)}) for D {dim}")
    products, outputs = (torch.empty(64, columns, device=rows.device) for columns in (tile, dim))
    rows, candidates, weights = (aligned(t.contiguous(), ALIGNMENT) for t in (rows, candidates, weights))
    CUDA.module.multiply_one_tile(
        matrix(rows, dim), matrix(candidates, dim), dim, weights.data_ptr(), products.data_ptr(), outputs.data_ptr(),
        *_where(rows.device),
    )  # fmt: skip
    return products, outputs


def tile_of_sm90(dim: int) -> int:
    """Return the number of candidates in a tile of the Hopper kernel for rows of `dim` values."""
    return int(CUDA.module.sm90_tile(dim))


@functools.cache
def _limits(device: torch.device) -> tuple[int, int, int]:
    """Return multiprocessors, bytes of shared memory that a block may request, compute capability (90 for 9.0)."""
    return CUDA.module.limits(torch.cuda.current_device() if device.index is None else device.index)


def _where(device: torch.device) -> tuple[int, int]:
    """Return device and stream of a launch."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream
