"""The parity command: errors of each backend and of plain PyTorch against float64.

sce-fast parity --n 256 --k 65536 --d 256 --dtypes bfloat16
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from sce_fast.benchmarks.machine import machine
from sce_fast.benchmarks.record import write_record
from sce_fast.loss.backends import BACKENDS, choose
from sce_fast.loss.parity import (
    KINDS,
    Inputs,
    Kind,
    MatmulPrecision,
    Parity,
    compare,
    float32_precision,
    make_inputs,
    problem_of,
)
from sce_fast.tools.arguments import OptionalFile
from sce_fast.util.terminal import progress_bar

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Comparison:
    """The errors of one backend on one set of inputs, or why there are none."""

    dtype: str
    kind: str
    seed: int
    backend: str
    parity: Parity | None = None
    refusal: str | None = None  # why the backend does not serve these inputs
    exception: str | None = None  # raised although the backend had accepted the inputs

    @property
    def fails(self) -> bool:
        return self.exception is not None or (self.parity is not None and not self.parity.holds)

    @property
    def severity(self) -> float:
        return self.parity.worst if self.parity is not None else float("inf")


def compare_backends(
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
    out: OptionalFile = None,
) -> bool:
    """Compare each backend's loss and gradient with float64 and print the errors beside those of plain PyTorch.

    A backend's error may be twice that of plain PyTorch at the same dtype, plus a floor. If an error is larger, the
    exit status is 1.

    Args:
        n: Rows N.
        k: Queue length K, 0 for no queue.
        d: Dimension D.
        dtypes: Dtypes of the inputs, each of which is compared.
        candidate_dtype: Dtype of queue and batch keys, if it differs from that of query and key.
        temperature: Temperature τ.
        target_temperature: Temperature τ_m.
        coefficient: Weight λ of the own key in the target.
        positive_target: Target at the own key, as in sce_loss.
        query_views: Views V of the query, 0 for a 2-D query.
        key_views: Views U of the key, 0 for a 2-D key.
        batch_keys: Rows of batch_keys, 0 for none.
        shared_batch_keys: Use 2-D batch_keys although the key has views.
        row_offset: Row of batch_keys at which the own keys begin.
        backends: Backends to compare; by default all that serve the inputs here.
        kinds: Kinds of inputs: random rows, rows in three clusters (clustered), query ≈ key (converged).
        seeds: Seeds of the inputs. The table shows the largest errors.
        device: Device. auto takes a GPU if there is one.
        matmul_precision: Value for torch.set_float32_matmul_precision during the comparison.
        out: JSON file for the record.

    Returns:
        Whether all errors are within their bounds.
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
    problem = problem_of(inputs, settings)
    asked = [choose(name, problem).name for name in backends]  # raises if one of them refuses
    for name in asked or BACKENDS:
        label = dtype, kind, seed, name
        reason = BACKENDS[name].refuses(problem)
        if reason is not None:
            yield Comparison(*label, refusal=reason)
            continue
        try:
            yield Comparison(*label, compare(name, inputs, **settings))
        except Exception as error:  # any exception of a kernel is a finding: the other backends still run
            yield Comparison(*label, exception=f"{type(error).__name__}: {error}".splitlines()[0])


def table(comparisons: list[Comparison]) -> str:
    """Return a line per dtype, kind and backend with its worst seed, and below the backends that refused the inputs."""
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
    lines.append("error: largest error against float64 on the same rounded inputs; plain: the error of plain PyTorch")
    return "\n".join(lines)


def _cells(comparison: Comparison) -> str:
    parity = comparison.parity
    if parity is None:
        return f"  FAILS: {comparison.exception}"
    errors = "   ".join(
        f"{error.backend:>10.1e}{error.plain:>10.1e}{error.allowed:>10.1e}" for error in (parity.loss, parity.gradient)
    )
    return f"{errors}   {'holds' if parity.holds else 'FAILS: ' + ', '.join(parity.failures)}"
