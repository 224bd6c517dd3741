"""Rows that are not unit rows: a backend gives the right result, or one that is not finite."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from sce_fast.loss import reference
from sce_fast.loss.parity import Inputs, make_inputs
from sce_fast.loss.problem import Problem, Solution, checked_problem
from sce_fast.util.rows import unit_rows

# "aligned" and "opposite": all candidates lie near the first key or opposite to it, so that sums overflow or underflow
# at the smallest norms.
NORMS = dict(
    kind=st.sampled_from(["random", "aligned", "opposite"]),
    which=st.sampled_from(["query", "key", "queue", "batch_keys", "all"]),
    norm=st.one_of(st.sampled_from([0.0, 1e-3, 0.5, 9.0, 1e4]), st.floats(1.0, 8.0)),
    mixed=st.booleans(),  # only every third row has that norm
    tau=st.sampled_from([0.01, 0.0251, 0.05, 0.1, 20.0]),
    tau_m=st.sampled_from([0.01, 0.0251, 0.05, 0.1, 20.0]),
    positive_target=st.sampled_from(["excluded", "zero_logit"]),
)


def long_rows(which: str, norm: float) -> dict[str, object]:
    """Return a case for all rows of one tensor, where all candidates lie near the first key."""
    case = dict(kind="aligned", which=which, norm=norm, mixed=False)
    return {**case, "tau": 0.05, "tau_m": 0.05, "positive_target": "excluded"}


def assert_right_or_not_finite(
    solve: Callable[[Problem], Solution],
    dtype: torch.dtype,
    weights: torch.dtype,
    *,
    kind: str,
    which: str,
    norm: float,
    mixed: bool,
    tau: float,
    tau_m: float,
    positive_target: str,
    always_finite: bool = False,
) -> None:
    """Check loss, gradient and statistics of a backend that rounds its softmax weights to a dtype."""
    inputs = make_inputs("random" if kind == "random" else "converged", n=4, d=64, k=130, m=7)
    if kind != "random":
        center = inputs.key[:1] if kind == "aligned" else -inputs.key[:1]
        near = {name: unit_rows(center + 0.01 * getattr(inputs, name)) for name in ("queue", "batch_keys")}
        inputs = dataclasses.replace(inputs, **near)
    for name in ("query", "key", "queue", "batch_keys") if which == "all" else (which,):
        getattr(inputs, name)[:: 3 if mixed else 1] *= norm
    inputs = inputs.to(dtype)
    settings: dict[str, Any] = dict(temperature=tau, target_temperature=tau_m, positive_target=positive_target)
    exact = reference.solve(_problem_of(inputs.to(torch.float64), settings))
    solution = solve(_problem_of(inputs, settings))
    for name, most in _allowed(inputs, exact, weights, tau, tau_m).items():
        values, right = getattr(solution, name).double(), getattr(exact, name).double()
        error = float(torch.where(values.isfinite(), values - right, 0).abs().max())
        assert error <= most, (name, values, right)
    if always_finite:
        assert all(bool(getattr(solution, field.name).isfinite().all()) for field in dataclasses.fields(solution))


def _problem_of(inputs: Inputs, settings: dict[str, Any]) -> Problem:
    return checked_problem(
        inputs.query.detach().requires_grad_(), inputs.key, inputs.queue, batch_keys=inputs.batch_keys, row_offset=2,
        needs_statistics=True, **settings,
    )  # fmt: skip


def _allowed(inputs: Inputs, exact: Solution, weights: torch.dtype, tau: float, tau_m: float) -> dict[str, float]:
    """Return how far each result may be from the exact one."""
    query, key, queue, batch_keys = (float(t.double().norm(dim=-1).max()) for t in dataclasses.astuple(inputs))
    candidate = max(queue, batch_keys)
    logit = max(query * max(candidate, key) / tau, key * candidate / tau_m, 1 / tau, 1 / tau_m)
    of_logit, of_weight = 64 * torch.finfo(torch.float32).eps * logit, torch.finfo(weights).eps
    of_rows = of_logit + of_weight * logit + 1e-3 * float(exact.rows.abs().max())
    if of_logit > 1:  # a softmax over such logits may be anything; only the size of the loss is known
        return {"rows": of_rows + 8 * logit}
    assert exact.gradient is not None
    return {
        "rows": of_rows,
        "target_entropy": of_logit + of_weight * logit + 1e-3,
        "positive_probability": of_logit + 1e-4,
        "gradient": (of_logit + of_weight) * candidate / tau + 0.02 * float(exact.gradient.abs().max()),
    }
