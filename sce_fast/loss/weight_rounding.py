"""What rounding the softmax's weights for a product in 16 bits may do, which plain PyTorch does not do."""

import dataclasses

import torch
from torch import Tensor

from sce_fast.loss import reference
from sce_fast.loss.problem import Problem


@dataclasses.dataclass(frozen=True)
class WeightRounding:
    """Of a loss row, of a target's entropy, of a gradient entry: three standard deviations, the largest there is."""

    loss: float = 0.0
    entropy: float = 0.0
    gradient: float = 0.0


def weight_rounding(problem: Problem, dtype: torch.dtype) -> WeightRounding:
    """The errors that follow from weights of that dtype, for a problem in float64.

    Plain PyTorch keeps weights in float32, so where it is lucky with its logits (few rows, few candidates) twice its
    error leaves nothing for this. Each weight is off by up to half an ulp of itself, the mean logit Σ t l by
    Σ ± eps/2 · t (l − Σ t l); the root of the sum of squares stands for the sum of independent signs.
    """
    if dtype.itemsize > 2:
        return WeightRounding()
    loss, entropy = torch.zeros(2, problem.query.shape[1], dtype=torch.float64, device=problem.query.device)
    gradient = torch.zeros_like(problem.query)
    terms = list(problem.terms())
    softmax_alone = dataclasses.replace(problem, coefficient=0.0, zero_logit=False)
    for v, u in terms:
        candidates, own_column = reference.candidates_of(problem, u)
        of_key = reference.product(problem.key[u], candidates.T, torch.float64)
        of_query = reference.product(problem.query[v], candidates.T, torch.float64)
        others = reference.target(of_key, own_column, problem).others  # (N, C), sums to (1 − λ)(1 − s₀)
        share = reference.target(of_key, own_column, softmax_alone).others  # (N, C), sums to 1
        seen = reference.without_own(of_query / problem.temperature, own_column).softmax(1)
        loss += _of_logits(others, share, of_query / problem.temperature) / len(terms)
        entropy = entropy.maximum(_of_logits(share, share, of_key / problem.target_temperature))
        means = _of_means(seen, seen, candidates) + _of_means(others, share, candidates)
        gradient[v] += means / (problem.temperature * len(terms))
    factor = 3 * torch.finfo(dtype).eps / 2
    return WeightRounding(*(factor * float(errors.max()) for errors in (loss, entropy, gradient)))


def _of_logits(weights: Tensor, share: Tensor, logits: Tensor) -> Tensor:
    """(N, C) each → (N,)"""
    return (weights * (logits - (share * logits).sum(1, keepdim=True))).square().sum(1).sqrt()


def _of_means(weights: Tensor, share: Tensor, candidates: Tensor) -> Tensor:
    """(N, C), (N, C), (C, D) → (N, D)"""
    mean, squares = share @ candidates, weights.square()
    of_each = squares @ candidates.square() - 2 * mean * (squares @ candidates)
    return (of_each + mean.square() * squares.sum(1, keepdim=True)).clamp(min=0).sqrt()
