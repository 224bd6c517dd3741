"""Transfer by logistic regression with a weight decay that is chosen on a validation set.

The protocol is that of Ericsson et al., "How well do self-supervised models transfer?" (CVPR 2021), which the papers
use. The objective, the solver and its stopping rule are those of scikit-learn's LogisticRegression(solver="lbfgs");
loss and gradient are computed by PyTorch, so the regression runs on a GPU too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.evaluate.accuracy import Accuracy, ranks_of_truth
from sce_fast.evaluate.average_precision import eleven_point_precision

Metric = Literal["accuracy", "mean per class", "11-point mAP"]
DECAYS = tuple(np.logspace(-6, 5, 45).tolist())
ITERATIONS = 100  # of L-BFGS for one weight decay, scikit-learn's default
TOLERANCE = 1e-4  # of the largest entry of the gradient, scikit-learn's default
VALIDATION_SHARE = 0.2


@dataclass(frozen=True)
class TransferSet:
    """Features of one data set, their labels, and the rows of its parts."""

    features: Tensor  # (n, F)
    labels: Tensor  # (n,) class numbers, or (n, C): 1 for a class that is shown, -1 if not, 0 to leave the row out
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class TransferResult:
    """The score on the test set, a share of 1, and how the weight decay was chosen."""

    score: float  # by the metric
    metric: Metric
    top1: float | None  # None for images with several classes
    mean_per_class: float | None
    weight_decay: float
    validation: dict[float, float]  # weight decay → score on the validation set
    converged: bool  # whether the final fit converged

    @property
    def at_edge(self) -> bool:
        """Whether the chosen weight decay is the smallest or largest of several, and better than the one beside it."""
        decays = sorted(self.validation)
        beside = {} if len(decays) < 2 else {decays[0]: decays[1], decays[-1]: decays[-2]}
        return self.weight_decay in beside and (
            self.validation[self.weight_decay] > self.validation[beside[self.weight_decay]]
        )


def transfer_score(
    data: TransferSet,
    metric: Metric,
    *,
    decays: Sequence[float] = DECAYS,
    max_iterations: int = ITERATIONS,
    device: torch.device | None = None,
    progress: Callable[[], object] = lambda: None,
) -> TransferResult:
    """Return the score of multinomial logistic regression with the weight decay that is best on the validation rows.

    The decays are tried in the given order, each from the weights of the one before it. The first of equally good ones
    is fitted again to the train and validation rows, from the last weights. Images with several classes give one
    regression for each class, of two outputs each, as in the published code.

    Args:
        data: features and labels.
        metric: "accuracy", "mean per class" (accuracy averaged over classes) or, for images with several classes,
            "11-point mAP".
        decays: of the squared weights in the sum of the losses: 1 / C of scikit-learn. The bias has none.
        max_iterations: largest number of L-BFGS iterations for each decay.
        device: of the regression; by default the CPU.
        progress: called after each decay, and after the final fit.

    Raises:
        ImportError: scipy is not installed.
        ValueError: a setting is out of range, a part has no rows, or the metric does not fit the labels.

    Example:
        >>> transfer_score(data, "accuracy").score
        0.804
    """
    check_search(decays, max_iterations)
    _check_set(data, metric)
    features = data.features.to(device or torch.device("cpu")).float()
    fits = _regressions(features, data.labels.to(features.device), max_iterations)
    scores: dict[float, float] = {}
    for decay in decays:
        for fit in fits:
            fit(data.train, decay)
        scores[decay] = _score(fits, features, data.labels, data.validation, metric).score
        progress()
    chosen = max(decays, key=lambda decay: scores[decay])
    both = np.concatenate([data.train, data.validation])
    converged = [fit(both, chosen) for fit in fits]
    found = _score(fits, features, data.labels, data.test, metric)
    progress()
    return TransferResult(
        found.score, metric, found.top1, found.mean_per_class, chosen, scores, converged=all(converged)
    )


def random_validation(train: NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the train rows that remain, and a random fifth of them for validation, as the published code draws it."""
    order = list(range(len(train)))
    np.random.RandomState(seed).shuffle(order)
    held = math.floor(VALIDATION_SHARE * len(train))
    return train[order[held:]], train[order[:held]]


def check_search(decays: Sequence[float], max_iterations: int) -> None:
    """Raise an error unless a search can run with these settings here.

    Raises:
        ImportError: scipy is not installed.
        ValueError: there is no decay, one is not positive and finite, or max_iterations is below 1.
    """
    if not decays or not all(0 < decay < math.inf for decay in decays):
        raise ValueError(f"decays={tuple(decays)}: expected one or more finite numbers > 0")
    if max_iterations < 1:
        raise ValueError(f"max_iterations={max_iterations}: expected at least 1")
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise ImportError("logistic regression needs scipy: pip install scikit-learn") from error


def _check_set(data: TransferSet, metric: Metric) -> None:
    for name in ("train", "validation", "test"):
        if not len(getattr(data, name)):
            raise ValueError(f"the data set has no {name} rows: expected at least one")
    if (data.labels.ndim == 2) != (metric == "11-point mAP"):
        raise ValueError(
            f"metric={metric!r} does not fit labels of the shape {tuple(data.labels.shape)}: 11-point mAP takes "
            "(n, C), the others (n,)"
        )


@dataclass(frozen=True)
class _Score:
    score: float
    top1: float | None = None
    mean_per_class: float | None = None


def _score(
    fits: "list[Regression]", features: Tensor, labels: Tensor, rows: NDArray[np.int64], metric: Metric
) -> _Score:
    """Return the score of fitted regressions on some rows."""
    if metric == "11-point mAP":
        precisions = []
        for fit, column in zip(fits, labels.numpy().T, strict=True):
            counted = rows[column[rows] != 0]
            relevant = column[counted] > 0
            if relevant.any():
                logits = fit.logits(features[torch.from_numpy(counted).to(features.device)])
                precisions.append(eleven_point_precision(relevant, (logits[:, 1] - logits[:, 0]).cpu().numpy()))
        return _Score(float(np.mean(precisions)))
    some = torch.from_numpy(rows)
    logits = fits[0].logits(features[some.to(features.device)]).cpu()
    accuracy = Accuracy.of_ranks(ranks_of_truth(logits, labels[some]), labels[some], labels)
    return _Score(
        accuracy.top1 if metric == "accuracy" else accuracy.mean_per_class, accuracy.top1, accuracy.mean_per_class
    )


def _regressions(features: Tensor, labels: Tensor, max_iterations: int) -> "list[Regression]":
    if labels.ndim == 1:
        return [Regression(features, labels, int(labels.max()) + 1, max_iterations)]
    return [
        Regression(features, (column > 0).long(), 2, max_iterations, counted=(column != 0).cpu().numpy())
        for column in labels.T
    ]


class Regression:
    """A multinomial logistic regression that keeps its weights from one fit to the next.

    A fit minimises mean cross-entropy + decay / (2 n) · ‖W‖² by L-BFGS; the bias has no decay.

    Args:
        features: (n, F) float32 or float64, on any device.
        labels: (n,) class numbers, on the same device.
        classes: number of outputs.
        max_iterations: largest number of iterations of a fit.
        counted: (n,) whether each row takes part in fits; by default all do.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        classes: int,
        max_iterations: int = ITERATIONS,
        counted: NDArray[np.bool_] | None = None,
    ) -> None:
        self._features, self._labels, self._max_iterations, self._counted = features, labels, max_iterations, counted
        self.weights = np.zeros((classes, features.shape[1] + 1))  # the last column is the bias

    def __call__(self, rows: NDArray[np.int64], decay: float) -> bool:
        """Fit some rows, starting from the present weights; return whether the fit has converged."""
        from scipy.optimize import minimize

        if self._counted is not None:
            rows = rows[self._counted[rows]]
        some = torch.from_numpy(rows).to(self._features.device)
        features, labels = self._features[some], self._labels[some]
        found = minimize(
            lambda flat: self._objective(flat, features, labels, decay / len(rows)),
            self.weights.ravel(),
            method="L-BFGS-B",
            jac=True,
            options={
                "maxiter": self._max_iterations, "maxls": 50, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps,
            },
        )  # fmt: skip
        self.weights = found.x.reshape(self.weights.shape)
        return bool(found.success)

    def logits(self, features: Tensor) -> Tensor:
        """Return the outputs (m, C) for features (m, F)."""
        weights = torch.from_numpy(self.weights).to(features)
        return torch.addmm(weights[:, -1], features, weights[:, :-1].T)

    def _objective(
        self, flat: NDArray[np.float64], features: Tensor, labels: Tensor, decay: float
    ) -> tuple[float, NDArray[np.float64]]:
        """Return the loss and its gradient by the weights."""
        weights = torch.from_numpy(flat).to(features).view(self.weights.shape)
        log_shares = torch.addmm(weights[:, -1], features, weights[:, :-1].T).log_softmax(1)
        own = log_shares.gather(1, labels[:, None])
        loss = -own.double().mean() + decay / 2 * weights[:, :-1].double().square().sum()
        residual = log_shares.exp()
        residual.scatter_add_(1, labels[:, None], -torch.ones_like(own))
        residual /= len(features)
        gradient = torch.cat([residual.T @ features + decay * weights[:, :-1], residual.sum(0)[:, None]], 1)
        return loss.item(), gradient.double().cpu().numpy().ravel()
