"""The loss in plain PyTorch, to be read beside the paper; every faster path is held to it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sce_fast.loss.problem import Problem, Solution


@dataclass(frozen=True)
class Target:
    """What the momentum encoder's side gives for one key view; no gradient passes here."""

    own: Tensor  # (N,) weight on the own key
    others: Tensor  # (N, C) weights on the candidates; own + others sum to 1 in a row
    entropy: Tensor  # (N,) entropy of the similarities' softmax, in nats


def solve(problem: Problem, product_dtype: torch.dtype | None = None) -> Solution:
    """The loss per row, its gradient and its statistics, by the formulas below.

    With product_dtype the logits are products of rows rounded to that dtype, and of that dtype themselves, as they are
    under autocast: what a faster path in that dtype is compared with.
    """
    with torch.no_grad(), torch.autocast(problem.query.device.type, enabled=False):
        return _solve(problem, product_dtype or problem.compute_dtype)


def _solve(problem: Problem, product_dtype: torch.dtype) -> Solution:
    compute = problem.compute_dtype
    query = problem.query.to(compute)  # (V, N, D)
    key = problem.key.to(compute)  # (U, N, D)
    targets, candidates, own_columns = [], [], []
    for u in range(len(key)):
        candidate, own_column = candidates_of(problem, u)
        candidates.append(candidate)
        own_columns.append(own_column)
        targets.append(target(product(key[u], candidate.T, product_dtype), own_column, problem))

    rows, gradient = torch.zeros_like(query[0, :, 0]), torch.zeros_like(query)
    positive_probability = torch.zeros_like(rows)
    terms = list(problem.terms())
    for v, u in terms:
        products = product(query[v], candidates[u].T, product_dtype)
        row, own_probability, excess = cross_entropy(query[v], key[u], products, own_columns[u], targets[u], problem)
        rows += row / len(terms)
        positive_probability += own_probability / len(terms)
        if problem.needs_gradient:
            pull = (own_probability - targets[u].own)[:, None] * key[u] + product(excess, candidates[u], product_dtype)
            gradient[v] += pull / (problem.temperature * len(terms))
    return Solution(
        rows=rows,
        gradient=gradient.to(problem.query.dtype) if problem.needs_gradient else None,
        target_entropy=torch.stack([t.entropy for t in targets]),
        positive_probability=positive_probability,
    )


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b of matrices rounded to a dtype, and of that dtype itself."""
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


def candidates_of(problem: Problem, u: int) -> tuple[Tensor, Tensor | None]:
    """The candidates (C, D) of key view u, and the column (N,) at which a row must not see itself."""
    parts, own_column = [], None
    if problem.batch_keys is not None:
        batch_keys = problem.batch_keys[u if len(problem.batch_keys) > 1 else 0]  # (M, D)
        parts.append(batch_keys)
        own_column = torch.arange(problem.query.shape[1], device=batch_keys.device) + problem.row_offset
    if problem.queue is not None:
        parts.append(problem.queue)
    return torch.cat([part.to(problem.compute_dtype) for part in parts]), own_column


def without_own(logits: Tensor, own_column: Tensor | None) -> Tensor:
    """The logits (N, C) with −∞ where a row meets its own key again."""
    return logits if own_column is None else logits.scatter(1, own_column[:, None], float("-inf"))


def target(products: Tensor, own_column: Tensor | None, problem: Problem) -> Target:
    """λ on the own key, 1 − λ spread over the candidates: w₂ of the paper (WACV 2023, section 3.2)."""
    logits = without_own(products / problem.target_temperature, own_column)  # (N, C)
    similarity = logits.softmax(1)
    entropy = logits.logsumexp(1) - (similarity * logits.where(similarity > 0, 0)).sum(1)
    if problem.zero_logit:
        # The official code leaves a logit of 0 where the paper leaves the own key out.
        zero = torch.zeros_like(logits[:, :1])
        with_zero = torch.cat([zero, logits], 1).softmax(1)
        own_similarity, similarity = with_zero[:, 0], with_zero[:, 1:]
    else:
        own_similarity = torch.zeros_like(entropy)
    own = problem.coefficient + (1 - problem.coefficient) * own_similarity
    return Target(own, (1 - problem.coefficient) * similarity, entropy)


def cross_entropy(
    query: Tensor, key: Tensor, products: Tensor, own_column: Tensor | None, target: Target, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """−Σ w₂ log p₁ per row (N,), p₁ of the own key (N,), and p₁ − w₂ of the others (N, C).

    The own key stands in the denominator of p₁, and p₁ − w₂ is the derivative by the logits.
    """
    own = (query * key).sum(1) / problem.temperature  # (N,)
    others = without_own(products / problem.temperature, own_column)  # (N, C)
    log_partition = torch.cat([own[:, None], others], 1).logsumexp(1)
    # the −∞ of the own column meets a target of 0, and 0 · ∞ would be NaN
    expected = (target.others * (others if own_column is None else others.scatter(1, own_column[:, None], 0))).sum(1)
    rows = log_partition - target.own * own - expected
    return rows, (own - log_partition).exp(), (others - log_partition[:, None]).exp() - target.others
