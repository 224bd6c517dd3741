"""The loss and the enqueue on a GPU by our CUDA C++ kernels: csrc/cuda, for bf16 and fp16 candidates."""

import functools

import torch
from torch import Tensor

from sce_fast.loss.problem import Problem, Solution
from sce_fast.native import CUDA

# As in csrc/problem.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# As in csrc/cuda/plan.h: the forward kernel of the GPU's own architecture, or a certain one.
KERNELS = {"best": 0, "sm80": 1, "sm90": 2}
NOTHING = (0, 0, 0)
LARGEST_DIM, DIM_STEP = 256, 16
ALIGNMENT = 16  # bytes, of what one asynchronous copy moves


def architectures() -> str:
    """What the built kernels are compiled for."""
    return str(CUDA.module.architectures)


def refuses(problem: Problem) -> str | None:
    """Why the kernels cannot serve these inputs, or None."""
    if CUDA.module is None:
        return f"the CUDA kernels are not built ({CUDA.missing}); {CUDA.remedy}"
    device = problem.query.device
    if device.type != "cuda":
        return f"the inputs are on {device}; move them to a CUDA device or use another backend"
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs; use backend='reference'"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and 8.0 is needed; use backend='reference'"
    return refuses_inputs(problem)


def refuses_inputs(problem: Problem) -> str | None:
    """Why the kernels cannot serve inputs of these sizes and types on any GPU, or None."""
    if problem.compute_dtype == torch.float64:
        return "it computes in float32, and an input is float64; use backend='reference'"
    candidates = [t for t in (problem.queue, problem.batch_keys) if t is not None]
    kinds = {t.dtype for t in candidates}
    if torch.float32 in kinds or len(kinds) > 1:
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
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
    """Return why the kernels cannot write to this ring (K, D), or None."""
    if CUDA.module is None:
        return f"the CUDA kernels are not built ({CUDA.missing}); {CUDA.remedy}"
    if keys.device.type != "cuda" or torch.version.hip is not None:
        return f"the queue is on {keys.device}; move it to an NVIDIA GPU or use another backend"
    major, minor = torch.cuda.get_device_capability(keys.device)
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and 8.0 is needed; use backend='reference'"
    if keys.dtype not in TYPES:
        return f"the queue is {keys.dtype}; make it float32, bfloat16 or float16, or use backend='reference'"
    return None


def solve(problem: Problem, kernel: str = "best") -> Solution:
    """Loss per row, gradient and statistics; nothing waits for the device.

    `kernel` names the forward kernel: "best" is "sm90" on a Hopper GPU (compute capability 9.0), "sm80" on all others.
    Raises ValueError for "sm90" on another GPU.
    """
    device = problem.query.device
    views, batch, dim = problem.query.shape
    key_views = len(problem.key)
    inputs = [_rows(t) for t in (problem.query, problem.key, problem.queue, problem.batch_keys)]
    scalars = None if problem.scalars is None else problem.scalars.contiguous()
    on_host = (problem.temperature, problem.target_temperature, problem.coefficient)
    call = CUDA.module.Call(
        *(NOTHING if t is None else (t.data_ptr(), TYPES[t.dtype], len(t)) for t in inputs),
        (views, key_views, batch, dim, 0 if problem.batch_keys is None else len(problem.batch_keys)),
        problem.row_offset,
        problem.same_views,
        problem.zero_logit,
        problem.needs_target,
        (0.0, 0.0, 0.0) if scalars is not None else tuple(map(float, on_host)),
        0 if scalars is None else scalars.data_ptr(),
        _limits(device),
        KERNELS[kernel],
    )

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    rows, positive_probability, target_entropy = empty(batch), empty(batch), empty(key_views, batch)
    gradient = empty(views, batch, dim, dtype=problem.query.dtype) if problem.needs_gradient else None
    workspace = empty(call.workspace_bytes, dtype=torch.uint8)
    call.solve(
        rows.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        target_entropy.data_ptr(),
        positive_probability.data_ptr(),
        workspace.data_ptr(),
        *_where(device),
    )
    return Solution(rows, gradient, target_entropy, positive_probability)


def enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, *, normalize: bool = False) -> None:
    """Overwrites the oldest rows of a ring as KeyQueue.enqueue does, in one pass over the new ones; no host sync.

    Args:
        keys: (K, D) on a CUDA device, float32, bfloat16 or float16, contiguous.
        cursor: () int64 on that device, the row that is overwritten next; advanced there.
        rows: (R, D), of any of these dtypes; of more than K rows the newest K stay.
        normalize: L2-normalise the rows first, in float32, as torch.nn.functional.normalize.

    Raises:
        RuntimeError: the kernels are not built, or a launch fails.
        ValueError: a shape, dtype or device is another.
    """
    if CUDA.module is None:
        raise RuntimeError(f"the CUDA kernels are not built ({CUDA.missing}); {CUDA.remedy}")
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
    rows = rows.contiguous()
    CUDA.module.enqueue(
        (keys.data_ptr(), TYPES[keys.dtype], len(keys)),
        keys.shape[1],
        cursor.data_ptr(),
        (rows.data_ptr(), TYPES[rows.dtype], len(rows)),
        normalize,
        *_where(keys.device),
    )


def tile_products(rows: Tensor, candidates: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The two products of one step of the Hopper kernel, each alone, so that a test can tell which of them is wrong.

    Args:
        rows: (64, D) on a GPU of compute capability 9.0, of the candidates' dtype, D a multiple of 16 up to 256.
        candidates: (R, D), bfloat16 or float16, R at most the kernel's tile for D.
        weights: (64, tile) of that dtype; those beyond R meet zeros.

    Returns:
        rows · candidatesᵀ (64, tile) and weights · candidates (64, D), float32.
    """
    dim, tile = rows.shape[1], weights.shape[1]
    if tile != tile_of_sm90(dim):
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (64, {tile_of_sm90(dim)}) for D {dim}")
    products, outputs = (torch.empty(64, columns, device=rows.device) for columns in (tile, dim))
    inputs = [_rows(t) for t in (rows, candidates, weights)]
    CUDA.module.multiply_one_tile(
        *((t.data_ptr(), TYPES[t.dtype], len(t)) for t in inputs[:2] if t is not None),
        dim,
        *(t.data_ptr() for t in (inputs[2], products, outputs) if t is not None),
        *_where(rows.device),
    )
    return products, outputs


def tile_of_sm90(dim: int) -> int:
    """Candidates in a tile of the Hopper kernel for rows of so many values."""
    return int(CUDA.module.sm90_tile(dim))


@functools.cache
def _limits(device: torch.device) -> tuple[int, int, int]:
    """Multiprocessors, bytes of shared memory that a block may ask for, compute capability (90 for 9.0)."""
    return CUDA.module.limits(torch.cuda.current_device() if device.index is None else device.index)


def _where(device: torch.device) -> tuple[int, int]:
    """Device and stream of a launch."""
    stream = torch.cuda.current_stream(device)
    return stream.device_index, stream.cuda_stream


def _rows(tensor: Tensor | None) -> Tensor | None:
    """(…, D) → contiguous (rows, D) that starts where an asynchronous copy can."""
    if tensor is None:
        return None
    rows = tensor.reshape(-1, tensor.shape[-1]).contiguous()
    return rows if rows.data_ptr() % ALIGNMENT == 0 else rows.clone()
