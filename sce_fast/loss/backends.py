"""One table of the loss's backends: name → why it cannot run here (or None) → the function that runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sce_fast.kernels import solve as triton
from sce_fast.loss import cpu as native
from sce_fast.loss import cuda as native_cuda
from sce_fast.loss import reference
from sce_fast.loss.problem import Problem, Solution
from sce_fast.util.names import pick


@dataclass(frozen=True)
class Backend:
    """A way to compute the loss."""

    name: str
    refuses: Callable[[Problem], str | None]  # the reason why it cannot serve these inputs
    solve: Callable[[Problem], Solution]
    automatic: bool = True  # whether "auto" may take it


# Fastest first: backend="auto" takes the first that does not refuse.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in [
        # Compiled and emulated, not yet run on a GPU: by name only until it has passed its tests and been timed there.
        Backend("cuda", refuses=native_cuda.refuses, solve=native_cuda.solve, automatic=False),
        # The kernel that "cuda" takes on every GPU but Hopper; on Hopper the two can be compared.
        Backend("cuda_sm80", native_cuda.refuses, partial(native_cuda.solve, kernel="sm80"), automatic=False),
        Backend("triton", refuses=triton.refuses, solve=triton.solve),
        Backend("cpu", refuses=native.refuses, solve=native.solve),
        Backend("reference", refuses=lambda problem: None, solve=reference.solve),
    ]
}


def choose(name: str, problem: Problem) -> Backend:
    """The backend of that name, or the fastest that serves the problem for "auto".

    Raises ValueError for a name that is not in the table or a backend that refuses the inputs.
    """
    if name == "auto":
        return next(b for b in BACKENDS.values() if b.automatic and b.refuses(problem) is None)
    backend = pick("backend", name, BACKENDS, also="auto")
    reason = backend.refuses(problem)
    if reason is not None:
        raise ValueError(f"backend={name!r} cannot serve this call: {reason}")
    return backend
