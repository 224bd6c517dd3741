"""Weighted k-nearest-neighbour (kNN) classification of frozen features."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sce_fast.evaluate.accuracy import Accuracy, check_sets, ranks_of_truth
from sce_fast.util.rows import unit_rows

QUERY_BLOCK = 256
TRAIN_BLOCK = 65536


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: Sequence[int] = (20,),
    temperature: float = 0.07,
    progress: Callable[[int], object] = lambda rows: None,
) -> list[Accuracy]:
    """Return the accuracy of weighted kNN for each number of neighbours.

    A neighbour votes with weight exp(cosine / temperature) (Wu et al., CVPR 2018). Similarities are computed block by
    block, so the memory beyond the features does not grow with their number. Among equal votes the lowest class number
    wins. A class without a vote is never among the top five.

    Args:
        train_features, test_features: (n, F) and (m, F); rows are normalised here.
        train_labels, test_labels: (n,) and (m,) class numbers.
        neighbours: values of k; at most n neighbours vote.
        temperature: temperature of the votes.
        progress: called with the number of test rows of each block.

    Raises:
        ValueError: lengths or widths differ, there are no rows, or neighbours or temperature is not positive.

    Example:
        >>> knn_accuracy(train, train_labels, test, test_labels, neighbours=(10, 20))[0].top1
        0.73
    """
    check_sets(train_features, train_labels, test_features, test_labels)
    check_votes(neighbours, temperature)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    ranks: list[list[Tensor]] = [[] for _ in neighbours]
    for start in range(0, len(test_features), QUERY_BLOCK):
        similarity, nearest = nearest_rows(test_features[start : start + QUERY_BLOCK], train_features, max(neighbours))
        # The nearest row votes with weight 1: with a fixed shift all votes would underflow at a low temperature.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        for k, found in zip(neighbours, ranks, strict=True):
            votes = torch.zeros(len(similarity), classes, dtype=similarity.dtype, device=similarity.device)
            votes.scatter_add_(1, train_labels[nearest[:, :k]], weights[:, :k])
            votes[votes == 0] = -torch.inf
            found.append(ranks_of_truth(votes, test_labels[start : start + QUERY_BLOCK]))
        progress(len(similarity))
    return [Accuracy.of_ranks(torch.cat(found), test_labels, train_labels) for found in ranks]


def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the top-1 accuracy of knn_accuracy for one number of neighbours."""
    sets = (train_features, train_labels, test_features, test_labels)
    return knn_accuracy(*sets, neighbours=(neighbours,), temperature=temperature)[0].top1


def check_votes(neighbours: Sequence[int], temperature: float) -> None:
    """Raise an error unless there are numbers of neighbours, all at least 1, and the temperature is positive.

    Raises:
        ValueError: see above.
    """
    if not neighbours or min(neighbours) < 1:
        raise ValueError(f"neighbours={tuple(neighbours)}: expected one or more numbers, each at least 1")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: expected a finite number > 0")


def nearest_rows(test: Tensor, train: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return cosines and numbers (m, k) of the train rows (n, F) nearest to each test row (m, F), nearest first."""
    parts = [_nearest(rows, train, neighbours) for rows in test.split(QUERY_BLOCK)]
    return torch.cat([best for best, _ in parts]), torch.cat([numbers for _, numbers in parts])


def _nearest(test: Tensor, train: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    test = unit_rows(test)
    best, numbers = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for start in range(0, len(train), TRAIN_BLOCK):
        similarity = test @ unit_rows(train[start : start + TRAIN_BLOCK]).T
        block_best, block_numbers = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
        best, numbers = torch.cat([best, block_best], 1), torch.cat([numbers, block_numbers + start], 1)
        best, order = best.topk(min(neighbours, best.shape[1]), dim=1)
        numbers = numbers.gather(1, order)
    return best, numbers
