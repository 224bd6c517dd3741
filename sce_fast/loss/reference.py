"""The loss and the queue's enqueue in plain PyTorch, to be read beside the paper.

Every faster backend is held to this one. The equations are those of Denize et al., WACV 2023, section 3.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sce_fast.loss.problem import Problem, Solution
from sce_fast.util.rows import unit_rows


@dataclass(frozen=True)
class Target:
    """The soft target w₂ that the teacher sets for one key view; it carries no gradient."""

    own_weight: Tensor  # (N,) weight of the own key: λ + (1 − λ) s₀
    weights: Tensor  # (N, C) weights of the other candidates; a row sums to others_weight = (1 − λ)(1 − s₀)
    entropy: Tensor  # (N,) entropy of the softmax over the similarities, in nats


def solve(problem: Problem, product_dtype: torch.dtype | None = None) -> Solution:
    """Return the loss per row, its gradient and its statistics.

    With `product_dtype`, matrix products take rows rounded to that dtype and give results of that dtype, as they do
    under autocast. Parity compares a faster backend in that dtype with this.
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
            own_excess = (own_probability - targets[u].own_weight)[:, None]
            pull = own_excess * key[u] + product(excess, candidates[u], product_dtype)
            gradient[v] += pull / (problem.temperature * len(terms))
    return Solution(
        rows=rows,
        gradient=gradient.to(problem.query.dtype) if problem.needs_gradient else None,
        target_entropy=torch.stack([t.entropy for t in targets]),
        positive_probability=positive_probability,
    )


def product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a @ b, operands and result rounded to `dtype`, in the dtype of `a`."""
    return (a.to(dtype) @ b.to(dtype)).to(a.dtype)


def candidates_of(problem: Problem, u: int) -> tuple[Tensor, Tensor | None]:
    """Return the candidates (C, D) of key view u and, with batch keys, the column (N,) of each row's own key."""
    parts, own_column = [], None
    if problem.batch_keys is not None:
        batch_keys = problem.batch_keys[u if problem.batch_key_views > 1 else 0]  # (M, D)
        parts.append(batch_keys)
        own_column = torch.arange(problem.query.shape[1], device=batch_keys.device) + problem.row_offset
    if problem.queue is not None:
        parts.append(problem.queue)
    return torch.cat([part.to(problem.compute_dtype) for part in parts]), own_column


def without_own(logits: Tensor, own_column: Tensor | None) -> Tensor:
    """Return the logits (N, C) with −∞ in each row's own column."""
    return logits if own_column is None else logits.scatter(1, own_column[:, None], float("-inf"))


def target(products: Tensor, own_column: Tensor | None, problem: Problem) -> Target:
    """Return the soft target w₂: λ on the own key, 1 − λ spread over the candidates by softmax(products / τ_m)."""
    logits = without_own(products / problem.target_temperature, own_column)  # (N, C)
    similarity = logits.softmax(1)
    entropy = logits.logsumexp(1) - (similarity * logits.where(similarity > 0, 0)).sum(1)
    if problem.zero_logit:
        # The official code leaves a logit of 0 where the paper leaves the own key out.
        zero = torch.zeros_like(logits[:, :1])
        with_zero = torch.cat([zero, logits], 1).softmax(1)
        own_similarity, similarity = with_zero[:, 0], with_zero[:, 1:]  # s₀, (N, C)
    else:
        own_similarity = torch.zeros_like(entropy)
    own_weight = problem.coefficient + (1 - problem.coefficient) * own_similarity
    return Target(own_weight, (1 - problem.coefficient) * similarity, entropy)


def cross_entropy(
    query: Tensor, key: Tensor, products: Tensor, own_column: Tensor | None, target: Target, problem: Problem
) -> tuple[Tensor, Tensor, Tensor]:
    """Return −Σ w₂ log p₁ per row (N,), p₁ of the own key (N,), and p₁ − w₂ of the candidates (N, C).

    The denominator of p₁ includes the own key. p₁ − w₂ is the derivative with respect to the logits.
    """
    own = (query * key).sum(1) / problem.temperature  # (N,) p
    others = without_own(products / problem.temperature, own_column)  # (N, C) l
    log_partition = torch.cat([own[:, None], others], 1).logsumexp(1)  # L = log(A + exp p)
    # The own column holds −∞ with weight 0, and 0 · ∞ would be NaN.
    expected = (target.weights * (others if own_column is None else others.scatter(1, own_column[:, None], 0))).sum(1)
    rows = log_partition - target.own_weight * own - expected
    return rows, (own - log_partition).exp(), (others - log_partition[:, None]).exp() - target.weights


def enqueue(keys: Tensor, cursor: Tensor, rows: Tensor, normalize: bool) -> None:
    """Overwrite the oldest rows of the ring keys (K, D), from the cursor on, with rows (N, D); advance the cursor.

    The newest K of more than K rows stay. The host reads nothing.
    """
    if normalize:
        rows = unit_rows(rows)
    size = len(keys)
    dropped = max(len(rows) - size, 0)
    offsets = torch.arange(dropped, len(rows), device=keys.device)
    keys.index_copy_(0, (cursor + offsets) % size, rows[dropped:].to(keys.dtype))
    cursor.copy_((cursor + len(rows)) % size)
