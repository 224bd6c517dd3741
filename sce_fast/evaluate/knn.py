"""Weighted nearest-neighbour classification of frozen features."""

import torch
from torch import Tensor

from sce_fast.rows import unit_rows

QUERY_BLOCK = 256
TRAIN_BLOCK = 65536


@torch.no_grad()
def knn_top1(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of test rows whose class wins the vote of their nearest train rows.

    A neighbour votes with exp(cosine / temperature) (Wu et al., CVPR 2018). Similarities are made block by block, so
    the memory beside the features does not grow with their number. Of equal votes the lowest class wins.

    Args:
        train_features, test_features: (n, F) and (m, F), normalised here.
        train_labels, test_labels: (n,) and (m,) class numbers.
        neighbours: k; at most n are used.

    Raises:
        ValueError: lengths do not agree, or neighbours or temperature is not positive.

    Example:
        >>> knn_top1(train, train_labels, test, test_labels)
        0.73
    """
    if len(train_features) != len(train_labels) or len(test_features) != len(test_labels):
        raise ValueError(
            f"{len(train_features)} train and {len(test_features)} test features, expected as many labels, "
            f"not {len(train_labels)} and {len(test_labels)}"
        )
    if neighbours < 1 or temperature <= 0:
        raise ValueError(f"neighbours={neighbours}, temperature={temperature}: expected both to be positive")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    correct = 0
    for start in range(0, len(test_features), QUERY_BLOCK):
        similarity, nearest = nearest_rows(test_features[start : start + QUERY_BLOCK], train_features, neighbours)
        votes = torch.zeros(len(similarity), classes, dtype=similarity.dtype, device=similarity.device)
        votes.scatter_add_(1, train_labels[nearest], ((similarity - 1) / temperature).exp())
        correct += int((votes.argmax(1) == test_labels[start : start + QUERY_BLOCK]).sum())
    return correct / len(test_features)


def nearest_rows(test: Tensor, train: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cosines and numbers (m, k) of the train rows (n, F) that are nearest to the test rows (m, F), nearest first."""
    test = unit_rows(test)
    best, numbers = test.new_empty(len(test), 0), torch.empty(len(test), 0, dtype=torch.int64, device=test.device)
    for start in range(0, len(train), TRAIN_BLOCK):
        similarity = test @ unit_rows(train[start : start + TRAIN_BLOCK]).T
        block_best, block_numbers = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
        best, numbers = torch.cat([best, block_best], 1), torch.cat([numbers, block_numbers + start], 1)
        best, order = best.topk(min(neighbours, best.shape[1]), dim=1)
        numbers = numbers.gather(1, order)
    return best, numbers
