"""Logistic regression on frozen features. The papers' linear evaluation differs: SGD on augmented images."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.evaluate.accuracy import Accuracy, check_sets, ranks_of_truth

REGULARIZATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
HELD_OUT = 5  # one in HELD_OUT rows of each class is held out to choose a regularization
SEED = 7


@dataclass(frozen=True)
class LogisticResult:
    """The accuracy of a logistic regression, and how it was fitted."""

    accuracy: Accuracy
    regularization: float
    held_out: dict[float, float]  # regularization → top-1 on held-out rows; empty without a choice
    converged: bool

    @property
    def edge(self) -> str:
        """Return "smallest" or "largest" if the chosen regularization lies at an edge of several; otherwise nothing."""
        edges = {max(self.held_out): "largest", min(self.held_out): "smallest"} if self.held_out else {}
        return edges.get(self.regularization, "")


def logistic_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    regularization: Sequence[float] = REGULARIZATIONS,
    max_iterations: int = 1000,
    progress: Callable[[], object] = lambda: None,
) -> LogisticResult:
    """Return the accuracy of a logistic regression that is fitted to standardised train features.

    With several regularizations, the best one on a held-out fifth of each class is used, and the smallest C among equal
    ones. The held-out rows depend only on the labels. The chosen regression is then fitted again to all train rows.

    Args:
        train_features, test_features: (n, F) and (m, F).
        train_labels, test_labels: (n,) and (m,) class numbers.
        regularization: values of scikit-learn's C, the inverse strength of the L2 penalty.
        max_iterations: maximum number of L-BFGS iterations.
        progress: called after each fit: that of each of several regularizations, and the last one.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: lengths or widths differ, a setting is out of range (see check_fit), there are fewer than two
            classes, or no class has enough rows to hold one out.

    Example:
        >>> logistic_accuracy(train, train_labels, test, test_labels, regularization=(1.0,)).accuracy.top1
        0.81
    """
    check_sets(train_features, train_labels, test_features, test_labels)
    check_fit(regularization, max_iterations)
    if len(train_labels.unique()) < 2:
        raise ValueError("the train set has only one class: expected at least two")
    held_out: dict[float, float] = {}
    chosen = regularization[0]
    if len(regularization) > 1:
        held = torch.from_numpy(held_out_rows(train_labels.numpy()))
        if not held.any() or len(train_labels[~held].unique()) < 2:
            raise ValueError(
                f"to choose a regularization, expected at least {HELD_OUT} rows in a class; give a single one"
            )
        for c in sorted(regularization):
            classifier = _fit(train_features[~held], train_labels[~held], c, max_iterations)
            held_out[c] = _score(classifier, train_features[held], train_labels[held]).top1
            progress()
        chosen = max(held_out, key=lambda c: held_out[c])  # max returns the first of equals, the smallest
    classifier = _fit(train_features, train_labels, chosen, max_iterations)
    progress()
    converged = bool(classifier[-1].n_iter_.max() < max_iterations)
    return LogisticResult(_score(classifier, test_features, test_labels), chosen, held_out, converged)


def logistic_top1(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    regularization: float = 1.0,
    max_iterations: int = 1000,
) -> float:
    """Return the top-1 accuracy of logistic_accuracy for one regularization."""
    sets = (train_features, train_labels, test_features, test_labels)
    return logistic_accuracy(*sets, regularization=(regularization,), max_iterations=max_iterations).accuracy.top1


def check_fit(regularization: Sequence[float], max_iterations: int) -> None:
    """Raise an error unless a regression can be fitted with these settings here.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: there is no regularization, one is not positive and finite, or max_iterations is below 1.
    """
    if not regularization or not all(0 < c < math.inf for c in regularization):
        raise ValueError(f"regularization={tuple(regularization)}: expected one or more finite numbers > 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}: expected at least 1")
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("logistic regression needs scikit-learn: pip install scikit-learn") from error


def held_out_rows(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a mask (n,) of held-out rows: one in HELD_OUT of each class, drawn from the labels alone."""
    random = np.random.Generator(np.random.Philox(SEED))
    held = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        held[rows[: len(rows) // HELD_OUT]] = True
    return held


def _fit(features: Tensor, labels: Tensor, regularization: float, max_iterations: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=regularization, max_iter=max_iterations))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # LogisticResult.converged reports it
        return classifier.fit(features.numpy(), labels.numpy())


def _score(classifier: Any, features: Tensor, labels: Tensor) -> Accuracy:
    scores = torch.from_numpy(classifier.decision_function(features.numpy()))  # (m, C), or (m,) for two classes
    if scores.ndim == 1:
        scores = torch.stack([-scores, scores], dim=1)
    known = torch.from_numpy(classifier.classes_)
    everything = torch.full((len(scores), int(max(known.max(), labels.max())) + 1), -torch.inf, dtype=scores.dtype)
    everything[:, known] = scores
    return Accuracy.of_ranks(ranks_of_truth(everything, labels), labels, known)
