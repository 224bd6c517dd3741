"""Compare a backend with float64. The rule: at most twice the error of plain PyTorch, plus a floor."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS
from sce_fast.loss.problem import Problem, Solution, check_choice, checked_problem
from sce_fast.loss.weight_rounding import weight_rounding
from sce_fast.util.rows import unit_rows

Kind = Literal["random", "clustered", "converged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MatmulPrecision = Literal["highest", "high", "medium"]
# The allowed error is twice the error of plain PyTorch, plus the effect of rounded weights (weight_rounding.py), plus a
# floor. The floor covers the rounding of sums, as a share of the largest logit 1/τ; the gradient's floor also covers
# the rounding of the result, as a share of its largest entry.
LOSS_FLOOR = GRADIENT_FLOOR = 1e-6
# An entropy is the difference of a log-sum and a mean logit, each rounded at the size of 1/τ_m.
ENTROPY_FLOOR = 4e-6
PROBABILITY_FLOOR = 1e-6
GRADIENT_ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-8, torch.float16: 2**-11}


@dataclass(frozen=True)
class Inputs:
    """The tensors of a call of sce_loss: unit rows in float64, or rounded."""

    query: Tensor  # (N, D) or (V, N, D)
    key: Tensor  # (N, D) or (U, N, D)
    queue: Tensor | None  # (K, D)
    batch_keys: Tensor | None  # (M, D) or (U, M, D)

    def to(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> "Inputs":
        tensors = (self.query, self.key, self.queue, self.batch_keys)
        return Inputs(*(None if t is None else t.to(device, dtype) for t in tensors))  # type: ignore[arg-type]

    def rounded(self, rows: torch.dtype, candidates: torch.dtype, device: str) -> "Inputs":
        """Return query and key in one dtype, queue and batch keys in another."""
        first, second = self.to(rows, device), self.to(candidates, device)
        return Inputs(first.query, first.key, second.queue, second.batch_keys)


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
    """Return unit rows in float64: "random" (independent), "clustered" (three clusters) or "converged" (query ≈ key).

    Args:
        kind: one of KINDS.
        n, d, k: N, D and K; k = 0 gives no queue.
        query_views, key_views: 0 gives 2-D tensors.
        m: rows of batch_keys; 0 gives none.
        shared_batch_keys: make batch_keys 2-D even if the key has views.
        seed: seed of the random numbers.

    Raises:
        ValueError: a size is too small, or there is no such kind.
    """
    check_choice("kind", kind, KINDS)
    sizes = {"n": n, "d": d, "k": k, "query_views": query_views, "key_views": key_views, "m": m}
    for name, size in sizes.items():
        if size < (least := 1 if name in ("n", "d") else 0):
            raise ValueError(f"{name}={size}: expected at least {least}")
    generator = torch.Generator().manual_seed(seed)

    def rows(*shape: int) -> Tensor:
        noise = torch.randn(*shape, d, generator=generator, dtype=torch.float64)
        if kind == "clustered":
            centers = torch.randn(3, d, generator=generator, dtype=torch.float64)
            noise = 0.3 * noise + centers[torch.randint(3, shape, generator=generator)]
        return unit_rows(noise)

    query, key = (rows(*([views] if views else []), n) for views in (query_views, key_views))
    if kind == "converged":  # all views of a sample lie close together
        base = key[0] if key_views else key
        query, key = (unit_rows(base + 0.01 * t) for t in (query, key))
    own_views = key_views if key_views and not shared_batch_keys else 0
    batch_keys = rows(*([own_views] if own_views else []), m) if m else None
    return Inputs(query, key, rows(k) if k else None, batch_keys)


@dataclass(frozen=True)
class Error:
    """The largest error of one quantity against float64, with the error that the rule allows."""

    backend: float
    plain: float  # the error of plain PyTorch at the same dtype
    allowed: float

    @property
    def holds(self) -> bool:
        return self.backend <= self.allowed

    def joined(self, other: "Error") -> "Error":
        """Return the error over the rows of both."""
        plain = max(self.plain, other.plain)
        floor = max(self.allowed - 2 * self.plain, other.allowed - 2 * other.plain)
        return Error(max(self.backend, other.backend), plain, 2 * plain + floor)


@dataclass(frozen=True)
class Parity:
    """The errors of all quantities against float64 on the same rounded inputs."""

    loss: Error
    gradient: Error
    positive_probability: Error
    target_entropy: Error | None  # None if it is not computed: λ = 1 without statistics

    @property
    def holds(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The quantities whose error is larger than allowed."""
        return [name for name, error in vars(self).items() if error is not None and not error.holds]

    @property
    def worst(self) -> float:
        """The largest ratio of an error to the allowed error."""
        return max(error.backend / error.allowed for error in vars(self).values() if error is not None)

    def joined(self, other: "Parity") -> "Parity":
        """Return the parity over the rows of both."""
        pairs = ((mine, getattr(other, name)) for name, mine in vars(self).items())
        return Parity(*(None if mine is None or its is None else mine.joined(its) for mine, its in pairs))  # type: ignore[arg-type]


def compare(
    backend: str,
    inputs: Inputs,
    product_dtype: torch.dtype | None = None,
    rows_at_a_time: int | None = None,
    **settings: Any,
) -> Parity:
    """Compare loss rows, gradient and statistics of a backend with float64 and with plain PyTorch.

    Args:
        backend: a name of BACKENDS.
        inputs: rounded tensors on the device under test.
        product_dtype: dtype in which plain PyTorch multiplies; by default the queue's, or without a queue that of the
            batch keys.
        rows_at_a_time: rows that float64 and plain PyTorch compute at once, since they hold N × K matrices. The backend
            always computes all N rows at once.
        settings: temperature, target_temperature, coefficient, positive_target and row_offset of sce_loss, and
            needs_statistics.
    """
    candidates = inputs.queue if inputs.queue is not None else inputs.batch_keys
    assert candidates is not None
    problem = problem_of(inputs, settings)
    solution = BACKENDS[backend].solve(problem)
    count = problem.query.shape[1]
    step = rows_at_a_time or count
    parities = []
    for start in range(0, count, step):
        rows = slice(start, start + step)
        some = Inputs(inputs.query[..., rows, :], inputs.key[..., rows, :], inputs.queue, inputs.batch_keys)
        offset = {} if inputs.batch_keys is None else {"row_offset": settings.get("row_offset", 0) + start}
        part = Solution(
            solution.rows[rows], _gradient(solution)[:, rows], solution.target_entropy[:, rows],
            solution.positive_probability[rows],
        )  # fmt: skip
        parities.append(_parity(part, some, product_dtype or candidates.dtype, {**settings, **offset}))
    return functools.reduce(Parity.joined, parities)


def _parity(solution: Solution, inputs: Inputs, dtype: torch.dtype, settings: dict[str, Any]) -> Parity:
    """Compare a solution for these inputs."""
    exact_problem = problem_of(inputs.to(torch.float64, inputs.query.device), settings)
    exact, weights = reference.solve(exact_problem), weight_rounding(exact_problem, dtype)
    problem = problem_of(inputs, settings)
    plain = reference.solve(problem, dtype)
    scale = 1 / min(float(problem.temperature), float(problem.target_temperature))
    result_rounding = GRADIENT_ROUNDING[problem.query.dtype] * float(_gradient(exact).abs().max())

    def error(values: Tensor, plain: Tensor, exact: Tensor, floor: float) -> Error:
        plain_error = _largest(plain, exact)
        return Error(_largest(values, exact), plain_error, 2 * plain_error + floor)

    return Parity(
        loss=error(solution.rows, plain.rows, exact.rows, LOSS_FLOOR * scale + weights.loss),
        gradient=error(
            _gradient(solution),
            _gradient(plain),
            _gradient(exact),
            GRADIENT_FLOOR * scale + result_rounding + weights.gradient,
        ),
        positive_probability=error(
            solution.positive_probability,
            plain.positive_probability,
            exact.positive_probability,
            PROBABILITY_FLOOR * scale,
        ),
        target_entropy=error(
            solution.target_entropy, plain.target_entropy, exact.target_entropy, ENTROPY_FLOOR * scale + weights.entropy
        )
        if problem.needs_target
        else None,
    )


def problem_of(inputs: Inputs, settings: dict[str, Any]) -> Problem:
    """Return the checked problem of these inputs, with a gradient."""
    return checked_problem(
        inputs.query.detach().requires_grad_(), inputs.key, inputs.queue, batch_keys=inputs.batch_keys, **settings
    )


def _gradient(solution: Solution) -> Tensor:
    assert solution.gradient is not None
    return solution.gradient


def _largest(values: Tensor, exact: Tensor) -> float:
    """Return the largest error; a value that is not finite counts as an unbounded error."""
    error = (values.double() - exact.double()).abs()
    return float(error.nan_to_num(nan=float("inf")).max())


@contextmanager
def float32_precision(precision: MatmulPrecision | None) -> Iterator[str]:
    """Set torch's precision of float32 products, yield it, and restore it; None leaves it as it is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
