"""Retrieval: the items of a bank that are nearest to each query, and how often their class is right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sce_fast.evaluate.accuracy import check_sets
from sce_fast.evaluate.knn import nearest_rows

RECALL_AT = (1, 5, 10, 15, 20, 25)  # of the papers
SETS = ("bank", "queries")


@dataclass(frozen=True)
class Retrieval:
    """The nearest items of each query, and the recall at each rank."""

    recall: dict[int, float]  # k → share of the queries with an item of their class among the k nearest
    similarity: Tensor  # (m, K) cosines of the centred features, nearest first; K is the largest k
    nearest: Tensor  # (m, K) numbers of the items in the bank
    first_right: Tensor  # (m,) rank of the nearest item of the query's class, from 0 on; K if there is none


@torch.no_grad()
def retrieve(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, query_labels: Tensor, *, at: Sequence[int] = RECALL_AT
) -> Retrieval:
    """Return the nearest items of each query by the cosine of centred features, and the recall R@k.

    Each side is centred by its own mean and its rows are normalised (eztorch's retrieval_from_bank). Similarities are
    computed block by block, so their memory does not grow with the number of features.

    Args:
        bank, queries: (n, F) and (m, F) features.
        bank_labels, query_labels: (n,) and (m,) class numbers.
        at: values of k.

    Raises:
        ValueError: lengths or widths differ, a side has fewer than two rows, a feature is not finite, or a k is below 1
            or above the size of the bank.

    Example:
        >>> retrieve(bank, bank_labels, queries, query_labels).recall[1]
        0.815
    """
    check_sets(bank, bank_labels, queries, query_labels, names=SETS)
    check_at(at)
    if max(at) > len(bank):
        raise ValueError(f"at={tuple(at)}: expected numbers up to {len(bank)}, the size of the bank")
    for name, features in zip(SETS, (bank, queries), strict=True):
        if len(features) < 2:
            raise ValueError(f"{len(features)} {name}: expected at least 2, since one row less the mean of itself is 0")
        if bad := int((~features.isfinite().all(1)).sum()):
            raise ValueError(f"{name}: {bad} of {len(features)} feature rows are not finite")
    similarity, nearest = nearest_rows(centred(queries), centred(bank), max(at))
    right = bank_labels[nearest] == query_labels[:, None]
    first_right = torch.where(right.any(1), right.int().argmax(1), max(at))
    recall = {k: (first_right < k).double().mean().item() for k in at}
    return Retrieval(recall, similarity, nearest, first_right)


def centred(features: Tensor) -> Tensor:
    """Return features (n, F) less their mean row, which is summed in float64."""
    wide = features.double()
    return (wide - wide.mean(0)).to(features.dtype)


def chance_recall(bank_labels: Tensor, query_labels: Tensor, *, at: Sequence[int] = RECALL_AT) -> dict[int, float]:
    """Return the expected R@k of a bank in random order: for each query 1 − C(n − c, k) / C(n, k), on average.

    Here n is the size of the bank and c the number of its items that have the query's class.

    Example:
        >>> chance_recall(torch.tensor([0, 0, 1, 1]), torch.tensor([0]), at=(1, 2))  # 1 − 2/4, 1 − (2/4)(1/3)
        {1: 0.5, 2: 0.8333333333333334}
    """
    check_at(at)
    items = len(bank_labels)
    classes = int(max(bank_labels.max(), query_labels.max())) + 1
    others = items - torch.bincount(bank_labels, minlength=classes)[query_labels].double()  # (m,) n − c
    drawn = torch.arange(min(max(at), items), dtype=torch.float64, device=others.device)
    all_wrong = ((others[:, None] - drawn).clamp(min=0) / (items - drawn)).cumprod(1)  # (m, K) after 1, 2, … items
    return {k: 1 - all_wrong[:, min(k, items) - 1].mean().item() for k in at}


def check_at(at: Sequence[int]) -> None:
    """Raise an error unless there are numbers k, all at least 1.

    Raises:
        ValueError: see above.
    """
    if not at or min(at) < 1:
        raise ValueError(f"at={tuple(at)}: expected one or more numbers, each at least 1")
