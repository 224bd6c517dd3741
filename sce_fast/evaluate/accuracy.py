"""Top-1 and top-5: shares of test rows whose class is the first, or among the first five, of a classifier's order."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares of the test rows."""

    top1: float
    top5: float | None  # with at least six classes to choose from

    @classmethod
    def of_ranks(cls, ranks: Tensor, train_labels: Tensor) -> "Accuracy":
        """From the rank (m,) that each row's own class has: 0 for the first."""
        top1, top5 = ((ranks < k).double().mean().item() for k in (1, 5))
        return cls(top1, top5 if len(train_labels.unique()) >= 6 else None)


def ranks_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """How many classes stand before the own one (m,), by scores (m, C); of equal ones the lower number stands first.

    A class with a score of −∞ or NaN is not in the order at all: its rank is C.
    """
    own = scores.gather(1, labels[:, None])
    numbers = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (numbers < labels[:, None]))
    return torch.where(own[:, 0] > -torch.inf, before.sum(1), scores.shape[1])


def check_sets(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    """Makes sure that features and labels belong together.

    Raises:
        ValueError: lengths or widths do not agree, or a set is empty.
    """
    if len(train_features) != len(train_labels) or len(test_features) != len(test_labels):
        raise ValueError(
            f"{len(train_features)} train and {len(test_features)} test features, expected as many labels, "
            f"not {len(train_labels)} and {len(test_labels)}"
        )
    if train_features.shape[1:] != test_features.shape[1:]:
        raise ValueError(
            f"train features are {tuple(train_features.shape[1:])} wide, test features {tuple(test_features.shape[1:])}"
        )
    if not len(train_features) or not len(test_features):
        raise ValueError(f"{len(train_features)} train and {len(test_features)} test features: expected some of each")
