"""Accuracy of a classification: top-1, top-5, and the mean over classes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """Shares of correctly classified test rows."""

    top1: float
    top5: float | None  # None with fewer than six train classes
    mean_per_class: float  # top-1 of each class of the test rows, averaged over these classes

    @classmethod
    def of_ranks(cls, ranks: Tensor, test_labels: Tensor, train_labels: Tensor) -> "Accuracy":
        """Return the accuracy for ranks (m,) of the true classes, as ranks_of_truth counts them."""
        top1, top5 = ((ranks < k).double().mean().item() for k in (1, 5))
        classes, of_class, counts = test_labels.unique(return_inverse=True, return_counts=True)
        right = torch.zeros(len(classes), dtype=torch.float64, device=ranks.device)
        right.index_add_(0, of_class, (ranks < 1).double())
        return cls(top1, top5 if len(train_labels.unique()) >= 6 else None, (right / counts).mean().item())


def majority_accuracy(train_labels: Tensor, test_labels: Tensor) -> Accuracy:
    """Return the accuracy of always answering with the most frequent train class (for top-5, the five most frequent).

    Among equally frequent classes the lowest number is the first.

    Example:
        >>> majority_accuracy(torch.tensor([0, 0, 1]), torch.tensor([0, 1])).top1
        0.5
    """
    counts = torch.bincount(train_labels, minlength=int(test_labels.max()) + 1).double()
    counts[counts == 0] = -torch.inf
    return Accuracy.of_ranks(
        ranks_of_truth(counts.expand(len(test_labels), -1), test_labels), test_labels, train_labels
    )


def ranks_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the rank (m,) of each row's true class by scores (m, C): 0 for the highest score.

    Among equal scores the lower class number ranks first. A class with score −∞ or NaN is not ranked: its rank is C.
    """
    own = scores.gather(1, labels[:, None])
    numbers = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (numbers < labels[:, None]))
    return torch.where(own[:, 0] > -torch.inf, before.sum(1), scores.shape[1])


def check_sets(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    names: tuple[str, str] = ("train", "test"),
) -> None:
    """Raise an error unless features and labels fit together; `names` are those of the sets in messages.

    Raises:
        ValueError: lengths or widths differ, or a set is empty.
    """
    if len(train_features) != len(train_labels) or len(test_features) != len(test_labels):
        raise ValueError(
            f"{len(train_features)} {names[0]} and {len(test_features)} {names[1]} features: expected as many labels, "
            f"not {len(train_labels)} and {len(test_labels)}"
        )
    widths = tuple(train_features.shape[1:]), tuple(test_features.shape[1:])
    if widths[0] != widths[1]:
        raise ValueError(
            f"{names[0]} features are {widths[0]} wide, {names[1]} features {widths[1]}: expected the same width"
        )
    if not len(train_features) or not len(test_features):
        raise ValueError(
            f"{len(train_features)} {names[0]} and {len(test_features)} {names[1]} features: "
            "expected at least one of each"
        )
