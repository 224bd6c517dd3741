"""The table of backends: for each one, why it cannot serve a call here, how it solves it, how it fills a queue.

backend="auto" takes the first backend of the table that does not refuse: "triton", then "cpu", then "reference".
"cuda" and "cuda_sm80" are taken by name only, because they are compiled and emulated but have not run on a GPU yet.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sce_fast.kernels import solve as triton
from sce_fast.loss import cpu as native
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss import reference
from sce_fast.loss.problem import Mean, Problem, Solution
from sce_fast.native import CPU
from sce_fast.util.names import pick


@dataclass(frozen=True)
class Backend:
    """One implementation of the loss and of the queue's enqueue.

    `refuses` and `refuses_ring` return the reason why this backend cannot serve the inputs here, or None.
    """

    name: str
    refuses: Callable[[Problem], str | None]
    solve: Callable[[Problem], Solution]
    # Averages the rows too, and gives the gradient of the mean, in less time than PyTorch takes for these two steps.
    solve_mean: Callable[[Problem], Mean] | None = None
    refuses_ring: Callable[[Tensor], str | None] = lambda keys: None  # keys: the ring (K, D)
    enqueue: Callable[..., None] = reference.enqueue  # (keys, cursor, rows, normalize)
    automatic: bool = True  # whether "auto" may take it


def _refuses_ring_off_cpu(keys: Tensor) -> str | None:
    if keys.device.type == "cpu":
        return None
    return f"the queue is on {keys.device}; move it to the CPU or use another backend"


def _enqueue_by_triton(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    from sce_fast.kernels.enqueue import enqueue  # imports Triton, at the first call only

    enqueue(keys, cursor, rows, normalize)


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in [  # in the order of loss/names.py
        Backend(
            "cuda",
            refuses=native_cuda.refuses,
            solve=native_cuda.solve,
            refuses_ring=native_cuda.refuses_ring,
            enqueue=native_cuda.enqueue,
            automatic=False,
        ),
        # The kernel that "cuda" takes on every GPU except Hopper, so that both can be compared there.
        Backend(
            "cuda_sm80",
            refuses=native_cuda.refuses,
            solve=partial(native_cuda.solve, kernel="sm80"),
            refuses_ring=native_cuda.refuses_ring,
            enqueue=native_cuda.enqueue,
            automatic=False,
        ),
        Backend(
            "triton",
            refuses=triton.refuses,
            solve=triton.solve,
            refuses_ring=triton.refuses_ring,
            enqueue=_enqueue_by_triton,
        ),
        Backend(
            "cpu",
            refuses=native.refuses,
            solve=native.solve,
            solve_mean=native.solve_mean,
            refuses_ring=_refuses_ring_off_cpu,
        ),
        Backend("reference", refuses=lambda problem: None, solve=reference.solve),
    ]
}


_warned = False


def choose(name: str, problem: Problem) -> Backend:
    """Return the backend that solves a problem: the named one, or the first that serves it for "auto".

    Raises ValueError if the table has no such name or if the named backend refuses the inputs.
    """
    if name != "auto":
        backend = check_name(name)
        return _unless(backend, "call", backend.refuses(problem))
    backend = next(b for b in BACKENDS.values() if b.automatic and b.refuses(problem) is None)
    # Not while compiling: torch.compile cannot trace a warning.
    if backend.name == "reference" and native.refuses(problem) == CPU.refusal and not torch.compiler.is_compiling():
        _warn_of_missing_kernels()
    return backend


def _warn_of_missing_kernels() -> None:
    """Warn, once in a process, at the line that calls sce_loss."""
    global _warned
    if not _warned:
        _warned = True
        message = f"the CPU kernels are {CPU.missing}, so the loss runs in plain PyTorch, several times slower"
        warnings.warn(f"{message}; {CPU.remedy}", stacklevel=4)


def choose_for_ring(name: str, keys: Tensor) -> Backend:
    """Return the backend that writes to a ring of keys (K, D), by the same rule and with the same errors."""
    if name != "auto":
        backend = check_name(name)
        return _unless(backend, "queue", backend.refuses_ring(keys))
    return next(b for b in BACKENDS.values() if b.automatic and b.refuses_ring(keys) is None)


def _unless(backend: Backend, what: str, reason: str | None) -> Backend:
    if reason is not None:
        raise ValueError(f"backend={backend.name!r} cannot serve this {what}: {reason}")
    return backend


def check_name(name: str) -> Backend:
    """Return the backend of that name. Raises ValueError, with the names there are, if the table has none."""
    return pick("backend", name, BACKENDS, also="auto")
