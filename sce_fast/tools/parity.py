"""How far a backend is from float64, beside plain PyTorch at the same dtype: the rule every fast path is held to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sce_fast import reference
from sce_fast.backends import BACKENDS
from sce_fast.problem import Problem, Solution, checked_problem
from sce_fast.rows import unit_rows

KINDS = ("random", "clustered", "converged")
# A fast path may be off by twice what plain PyTorch is off, plus this: what rounding of sums and of the result itself
# allows, as a share of the largest logit 1/τ (a loss row, a gradient entry), and of the largest gradient entry.
LOSS_FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
GRADIENT_FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
GRADIENT_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@dataclass(frozen=True)
class Inputs:
    """What sce_loss is given, unit rows in float64 or rounded."""

    query: Tensor  # (N, D) or (V, N, D)
    key: Tensor  # (N, D) or (U, N, D)
    queue: Tensor | None  # (K, D)
    batch_keys: Tensor | None  # (M, D) or (U, M, D)

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> "Inputs":
        tensors = (self.query, self.key, self.queue, self.batch_keys)
        return Inputs(*(None if t is None else t.to(device, dtype) for t in tensors))  # type: ignore[arg-type]


def make_inputs(
    kind: str,
    *,
    n: int,
    d: int,
    k: int,
    query_views: int = 0,
    key_views: int = 0,
    m: int = 0,
    shared_batch_keys: bool = False,
    seed: int = 0,
) -> Inputs:
    """Unit rows in float64: independent ("random"), in three clusters ("clustered"), or with query ≈ key ("converged").

    Args:
        kind: One of KINDS.
        n, d, k: N, D and K; no queue for k = 0.
        query_views, key_views: 0 for 2-D tensors.
        m: Rows of batch_keys, 0 for none; 2-D where shared_batch_keys or the key is.
        shared_batch_keys: 2-D batch_keys although the key has views.
        seed: Of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        noise = torch.randn(*shape, d, generator=generator, dtype=torch.float64)
        if kind == "clustered":
            centers = torch.randn(3, d, generator=generator, dtype=torch.float64)
            noise = 0.3 * noise + centers[torch.randint(3, shape, generator=generator)]
        return unit_rows(noise)

    query, key = (rows(*([views] if views else []), n) for views in (query_views, key_views))
    if kind == "converged":  # every view of a sample at nearly the same place
        base = key[0] if key_views else key
        query, key = (unit_rows(base + 0.01 * t) for t in (query, key))
    own_views = key_views if key_views and not shared_batch_keys else 0
    batch_keys = rows(*([own_views] if own_views else []), m) if m else None
    return Inputs(query, key, rows(k) if k else None, batch_keys)


@dataclass(frozen=True)
class Parity:
    """Largest errors against float64 on the same rounded inputs, and what the rule allows."""

    loss_error: float
    plain_loss_error: float
    loss_allowed: float
    gradient_error: float
    plain_gradient_error: float
    gradient_allowed: float

    @property
    def holds(self) -> bool:
        return self.loss_error <= self.loss_allowed and self.gradient_error <= self.gradient_allowed


def compare(backend: str, inputs: Inputs, product_dtype: torch.dtype | None = None, **settings: Any) -> Parity:
    """Loss rows and gradient of a backend against float64 and plain PyTorch.

    Args:
        backend: A name of BACKENDS.
        inputs: Already rounded, on the device under test.
        product_dtype: The dtype in which plain PyTorch multiplies; by default that of the queue (of the batch keys
            without one).
        settings: temperature, target_temperature, coefficient, positive_target and row_offset of sce_loss.
    """
    candidates = inputs.queue if inputs.queue is not None else inputs.batch_keys
    assert candidates is not None
    dtype = product_dtype or candidates.dtype
    exact = reference.solve(_problem(inputs.to(torch.float64, inputs.query.device), settings))
    problem = _problem(inputs, settings)
    plain = reference.solve(problem, dtype)
    solution = BACKENDS[backend].solve(problem)
    scale = 1 / min(float(problem.temperature), float(problem.target_temperature))
    loss_error, plain_loss_error = (_largest(s.rows, exact.rows) for s in (solution, plain))
    gradient_error, plain_gradient_error = (_largest(_gradient(s), _gradient(exact)) for s in (solution, plain))
    rounding = GRADIENT_ROUNDING[problem.query.dtype] * float(_gradient(exact).abs().max())
    return Parity(
        loss_error,
        plain_loss_error,
        2 * plain_loss_error + LOSS_FLOOR[dtype] * scale,
        gradient_error,
        plain_gradient_error,
        2 * plain_gradient_error + GRADIENT_FLOOR[dtype] * scale + rounding,
    )


def _problem(inputs: Inputs, settings: dict[str, Any]) -> Problem:
    return checked_problem(
        inputs.query.detach().requires_grad_(), inputs.key, inputs.queue, batch_keys=inputs.batch_keys, **settings
    )


def _gradient(solution: Solution) -> Tensor:
    assert solution.gradient is not None
    return solution.gradient


def _largest(values: Tensor, exact: Tensor) -> float:
    """The largest error; infinite where a value is not finite although the exact one is."""
    error = (values.double() - exact.double()).abs()
    return float(error.nan_to_num(nan=float("inf")).max())
