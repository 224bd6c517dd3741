"""The extra error that a backend may make by rounding softmax weights to 16 bits, which plain PyTorch does not do."""

import dataclasses

import torch
from torch import Tensor

from sce_fast.loss import reference
from sce_fast.loss.problem import Problem


@dataclasses.dataclass(frozen=True)
class WeightRounding:
    """Three standard deviations of the error; the largest over the rows or entries of each quantity."""

    loss: float = 0.0
    entropy: float = 0.0
    gradient: float = 0.0


def weight_rounding(problem: Problem, dtype: torch.dtype) -> WeightRounding:
    """Return the errors that weights rounded to `dtype` cause in a float64 problem.

    Plain PyTorch keeps weights in float32. Where its logits happen to be accurate (few rows, few candidates), twice its
    error leaves no room for rounded weights. Each weight is off by up to half an ulp of itself, and the mean logit
    Σ t l by Σ ± eps/2 · t (l − Σ t l). The root of the sum of squares stands for a sum of independent signs.
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
        weights = reference.target(of_key, own_column, problem).weights  # (N, C), sums to others_weight
        share = reference.target(of_key, own_column, softmax_alone).weights  # (N, C), sums to 1
        prediction = reference.without_own(of_query / problem.temperature, own_column).softmax(1)
        loss += _error_of_mean_logit(weights, share, of_query / problem.temperature) / len(terms)
        of_entropy = _error_of_mean_logit(share, share, of_key / problem.target_temperature)
        entropy = entropy.maximum(of_entropy)
        means = _error_of_mean_row(prediction, prediction, candidates) + _error_of_mean_row(weights, share, candidates)
        gradient[v] += means / (problem.temperature * len(terms))
    factor = 3 * torch.finfo(dtype).eps / 2
    return WeightRounding(*(factor * float(errors.max()) for errors in (loss, entropy, gradient)))


def _error_of_mean_logit(weights: Tensor, share: Tensor, logits: Tensor) -> Tensor:
    """(N, C) each → (N,)"""
    return (weights * (logits - (share * logits).sum(1, keepdim=True))).square().sum(1).sqrt()


def _error_of_mean_row(weights: Tensor, share: Tensor, candidates: Tensor) -> Tensor:
    """(N, C), (N, C), (C, D) → (N, D)"""
    mean, squares = share @ candidates, weights.square()
    of_each = squares @ candidates.square() - 2 * mean * (squares @ candidates)
    return (of_each + mean.square() * squares.sum(1, keepdim=True)).clamp(min=0).sqrt()
