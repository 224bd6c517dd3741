"""How far a backend is from float64, beside plain PyTorch at the same dtype: the rule every fast path is held to.

sce-fast parity --n 256 --k 65536 --d 256 --dtypes bfloat16
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sce_fast.benchmarks.record import machine, write_record
from sce_fast.loss import reference
from sce_fast.loss.backends import BACKENDS, choose
from sce_fast.loss.problem import Problem, Solution, check_choice, checked_problem
from sce_fast.loss.weight_rounding import weight_rounding
from sce_fast.train.log import progress_bar
from sce_fast.util.rows import unit_rows

Kind = Literal["random", "clustered", "converged"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Dtype = Literal["float32", "bfloat16", "float16"]
MatmulPrecision = Literal["highest", "high", "medium"]
# A fast path may be off by twice what plain PyTorch is off, plus what rounded weights do (weight_rounding.py), plus
# this: what rounding of sums and of the result itself allows, as a share of the largest logit 1/τ (a loss row, a
# gradient entry), and of the largest gradient entry.
LOSS_FLOOR = GRADIENT_FLOOR = 1e-6
# Of the statistics: an entropy is the difference of a log-sum and a mean logit, each rounded at the size of 1/τ_m.
ENTROPY_FLOOR = 4e-6
PROBABILITY_FLOOR = 1e-6
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

    def rounded(self, rows: torch.dtype, candidates: torch.dtype, device: str) -> "Inputs":
        """Query and key in one dtype, queue and batch keys in another."""
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
    """Unit rows in float64: independent ("random"), in three clusters ("clustered"), or with query ≈ key ("converged").

    Args:
        kind: One of KINDS.
        n, d, k: N, D and K; no queue for k = 0.
        query_views, key_views: 0 for 2-D tensors.
        m: Rows of batch_keys, 0 for none; 2-D where shared_batch_keys or the key is.
        shared_batch_keys: 2-D batch_keys although the key has views.
        seed: Of the random numbers.
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
    if kind == "converged":  # every view of a sample at nearly the same place
        base = key[0] if key_views else key
        query, key = (unit_rows(base + 0.01 * t) for t in (query, key))
    own_views = key_views if key_views and not shared_batch_keys else 0
    batch_keys = rows(*([own_views] if own_views else []), m) if m else None
    return Inputs(query, key, rows(k) if k else None, batch_keys)


@dataclass(frozen=True)
class Error:
    """The largest error of one quantity against float64."""

    backend: float
    plain: float  # of plain PyTorch at the same dtype
    allowed: float

    @property
    def holds(self) -> bool:
        return self.backend <= self.allowed

    def joined(self, other: "Error") -> "Error":
        """The same quantity's over the rows of both: the largest errors, and what they allow."""
        plain = max(self.plain, other.plain)
        floor = max(self.allowed - 2 * self.plain, other.allowed - 2 * other.plain)
        return Error(max(self.backend, other.backend), plain, 2 * plain + floor)


@dataclass(frozen=True)
class Parity:
    """Largest errors against float64 on the same rounded inputs, and what the rule allows."""

    loss: Error
    gradient: Error
    positive_probability: Error
    target_entropy: Error | None  # None where nobody asks for it: λ = 1 without statistics

    @property
    def holds(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """The quantities that are off by more than is allowed."""
        return [name for name, error in vars(self).items() if error is not None and not error.holds]

    @property
    def worst(self) -> float:
        """The largest error as a share of what is allowed."""
        return max(error.backend / error.allowed for error in vars(self).values() if error is not None)

    def joined(self, other: "Parity") -> "Parity":
        """That of the rows of both."""
        pairs = ((mine, getattr(other, name)) for name, mine in vars(self).items())
        return Parity(*(None if mine is None or its is None else mine.joined(its) for mine, its in pairs))  # type: ignore[arg-type]


def compare(
    backend: str,
    inputs: Inputs,
    product_dtype: torch.dtype | None = None,
    rows_at_a_time: int | None = None,
    **settings: Any,
) -> Parity:
    """Loss rows, gradient and statistics of a backend against float64 and plain PyTorch.

    Args:
        backend: A name of BACKENDS.
        inputs: Already rounded, on the device under test.
        product_dtype: The dtype in which plain PyTorch multiplies; by default that of the queue (of the batch keys
            without one).
        rows_at_a_time: The backend computes all N rows at once; float64 and plain PyTorch, which hold N × K matrices,
            so many.
        settings: temperature, target_temperature, coefficient, positive_target and row_offset of sce_loss.
    """
    candidates = inputs.queue if inputs.queue is not None else inputs.batch_keys
    assert candidates is not None
    problem = _problem(inputs, settings)
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
    """Of a solution for these inputs."""
    exact_problem = _problem(inputs.to(torch.float64, inputs.query.device), settings)
    exact, weights = reference.solve(exact_problem), weight_rounding(exact_problem, dtype)
    problem = _problem(inputs, settings)
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


@dataclass(frozen=True)
class Comparison:
    """One backend on one set of inputs: how far off it is, or why there is no answer."""

    dtype: str
    kind: str
    seed: int
    backend: str
    parity: Parity | None = None
    refusal: str | None = None  # it does not serve these inputs
    exception: str | None = None  # it said it would, and raised

    @property
    def fails(self) -> bool:
        return self.exception is not None or (self.parity is not None and not self.parity.holds)

    @property
    def severity(self) -> float:
        return self.parity.worst if self.parity is not None else float("inf")


def main(
    *,
    n: int = 256,
    k: int = 4096,
    d: int = 128,
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16"),
    candidate_dtype: Dtype | None = None,
    temperature: float = 0.1,
    target_temperature: float = 0.05,
    coefficient: float = 0.5,
    positive_target: Literal["excluded", "zero_logit"] = "excluded",
    query_views: int = 0,
    key_views: int = 0,
    batch_keys: int = 0,
    shared_batch_keys: bool = False,
    row_offset: int = 0,
    backends: tuple[str, ...] = (),
    kinds: tuple[Kind, ...] = KINDS,
    seeds: tuple[int, ...] = (0,),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    matmul_precision: MatmulPrecision | None = None,
    out: Path | None = None,
) -> bool:
    """Errors of each backend's loss and gradient against float64, beside plain PyTorch's; exit status 1 if one fails.

    A backend may be off by twice what plain PyTorch is off at the same dtype, plus a floor.

    Args:
        n: Rows.
        k: Queue length, 0 for none.
        d: Dimension.
        dtypes: Of all inputs, one after another.
        candidate_dtype: Of queue and batch keys where it is another one.
        temperature: τ.
        target_temperature: τ_m.
        coefficient: λ.
        positive_target: As sce_loss takes it.
        query_views: V, 0 for a 2-D query.
        key_views: U, 0 for a 2-D key.
        batch_keys: Rows of batch_keys, 0 for none.
        shared_batch_keys: 2-D batch_keys although the key has views.
        row_offset: Where the own keys begin among the batch keys.
        backends: By default every one that serves the inputs here.
        kinds: Independent rows, rows in three clusters, query ≈ key.
        seeds: Of the random inputs; the table shows the worst of them.
        device: auto takes a GPU where there is one.
        matmul_precision: torch.set_float32_matmul_precision for this comparison.
        out: JSON file for the record.
    """
    here, place = machine(), ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    sizes: dict[str, Any] = {
        "n": n, "d": d, "k": k, "query_views": query_views, "key_views": key_views, "m": batch_keys,
        "shared_batch_keys": shared_batch_keys,
    }  # fmt: skip
    settings: dict[str, Any] = {
        "temperature": temperature, "target_temperature": target_temperature, "coefficient": coefficient,
        "positive_target": positive_target, "row_offset": row_offset,
    }  # fmt: skip
    comparisons: list[Comparison] = []
    with (
        float32_precision(matmul_precision) as precision,
        progress_bar(len(dtypes) * len(kinds) * len(seeds), "Comparing", unit="input") as bar,
    ):
        for dtype in dtypes:
            for kind in kinds:
                for seed in seeds:
                    exact = make_inputs(kind, seed=seed, **sizes)
                    inputs = exact.rounded(getattr(torch, dtype), getattr(torch, candidate_dtype or dtype), place)
                    comparisons += _compare_all(inputs, backends, settings, dtype, kind, seed)
                    bar.update()
    views = f", {query_views or 1} × {key_views or 1} views" if query_views or key_views else ""
    candidates = f"K {k}" + (f" and {batch_keys} batch keys" if batch_keys else "")
    print(f"\nN {n}, {candidates}, D {d}{views}, τ {temperature:g}, τ_m {target_temperature:g}, λ {coefficient:g}")
    print(f"on {place}, the own key's target {positive_target!r}, float32 products of precision {precision!r}\n")
    print(table(comparisons))
    if out is not None:
        asked = {**sizes, **settings, "candidate_dtype": candidate_dtype, "matmul_precision": precision}
        results = [{**asdict(c), "holds": not c.fails} for c in comparisons if c.refusal is None]
        write_record(out, {"machine": here, "settings": asked, "device": place, "comparisons": results})
    return not any(comparison.fails for comparison in comparisons)


def _compare_all(
    inputs: Inputs, backends: tuple[str, ...], settings: dict[str, Any], dtype: str, kind: str, seed: int
) -> Iterator[Comparison]:
    problem = _problem(inputs, settings)
    asked = [choose(name, problem).name for name in backends]  # raises where one of these refuses
    for name in asked or BACKENDS:
        label = dtype, kind, seed, name
        reason = BACKENDS[name].refuses(problem)
        if reason is not None:
            yield Comparison(*label, refusal=reason)
            continue
        try:
            yield Comparison(*label, compare(name, inputs, **settings))
        except Exception as error:  # whatever a kernel raises is a finding, and the other backends go on
            yield Comparison(*label, exception=f"{type(error).__name__}: {error}".splitlines()[0])


def table(comparisons: list[Comparison]) -> str:
    """One line for each dtype, kind and backend, the worst of its seeds; below it the backends that were refused."""
    worst: dict[tuple[str, str, str], Comparison] = {}
    refusals: dict[str, list[str]] = {}  # reason → dtypes, in order
    for comparison in comparisons:
        if comparison.refusal is not None:
            dtypes = refusals.setdefault(f"{comparison.backend} is not compared: {comparison.refusal}", [])
            if comparison.dtype not in dtypes:
                dtypes.append(comparison.dtype)
            continue
        place = comparison.dtype, comparison.kind, comparison.backend
        if place not in worst or comparison.severity > worst[place].severity:
            worst[place] = comparison
    three = f"{'error':>10}{'plain':>10}{'allowed':>10}"
    lines = [f"{'':<33}{'loss of a row':^30}{'   '}{'gradient entry':^30}"]
    lines.append(f"{'dtype':<10}{'kind':<11}{'backend':<12}{three}   {three}")
    for (dtype, kind, backend), comparison in worst.items():
        lines.append(f"{dtype:<10}{kind:<11}{backend:<12}{_cells(comparison)}")
    lines += [f"{reason} ({', '.join(dtypes)})" for reason, dtypes in refusals.items()]
    lines.append("error: the largest against float64 on the same rounded inputs; plain: plain PyTorch's at that dtype")
    return "\n".join(lines)


def _cells(comparison: Comparison) -> str:
    parity = comparison.parity
    if parity is None:
        return f"  FAILS: {comparison.exception}"
    errors = "   ".join(
        f"{error.backend:>10.1e}{error.plain:>10.1e}{error.allowed:>10.1e}" for error in (parity.loss, parity.gradient)
    )
    return f"{errors}   {'holds' if parity.holds else 'FAILS: ' + ', '.join(parity.failures)}"


@contextmanager
def float32_precision(precision: MatmulPrecision | None) -> Iterator[str]:
    """torch's precision of float32 products as asked for, and as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision or before)
    try:
        yield torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
