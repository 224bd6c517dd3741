"""Linear support vector machines (SVMs), one for each class, on all or on few images of each class.

The protocol is that of Goyal et al. (ICCV 2019) and of PCL's script, with which the papers compare: LinearSVC with
squared hinge loss on L2-normalised features, positives weighted twice, average precision by area.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sce_fast.distributed import Ranks
from sce_fast.evaluate.average_precision import interpolated_precision

COST = 0.5
SHOTS = (1, 2, 4, 8, 16, 32, 64)
DRAWS = 5
POSITIVE_WEIGHT = 2.0
MAX_ITERATIONS = 2000
NORM_FLOOR = 1e-5  # added to a feature's norm, as in the published script


@dataclass(frozen=True)
class SVMResult:
    """The mean average precision of each draw of train images, and what it was drawn from."""

    shots: int | None  # images of each class; None for all
    draws: list[float]  # mean over classes of the average precision, one for each draw

    @property
    def mean(self) -> float:
        return float(np.mean(self.draws))

    @property
    def std(self) -> float:
        """Standard deviation over the draws, divided by their number; 0 for a single one."""
        return float(np.std(self.draws))


class SVMEvaluation:
    """Scores one-vs-all SVMs on one data set. Several ranks share the fits; each has to make every call.

    Args:
        features: (n, F).
        labels: (n, C): 1 for a class that is shown, -1 if not, 0 to leave the row out for this class.
        train, test: row numbers.
        cost: C of LinearSVC.
        seed: of the draws.
        ranks: that share the fits.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: a setting is out of range, or a class has no train or no test image.
    """

    def __init__(
        self,
        features: Tensor,
        labels: NDArray[np.int64],
        train: NDArray[np.int64],
        test: NDArray[np.int64],
        *,
        cost: float = COST,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        check_svm(cost, (), 1)
        for name, rows in (("train", train), ("test", test)):
            missing = np.flatnonzero(~(labels[rows] > 0).any(axis=0)).tolist()
            if missing:
                raise ValueError(f"class {missing[0]} has no {name} image: expected at least one of each class")
        norms = features.norm(dim=1, keepdim=True) + NORM_FLOOR
        self._features = (features / norms).numpy()
        self._labels, self._train, self._test = labels, train, test
        self._cost, self._seed, self._ranks = cost, seed, ranks or Ranks()

    def score(
        self, shots: int | None = None, draws: int = DRAWS, progress: Callable[[int], object] = lambda fits: None
    ) -> SVMResult:
        """Return the mean average precision on the test rows.

        Args:
            shots: images of each class, drawn anew for each draw; None takes all train rows, once.
            draws: number of draws.
            progress: called with the number of fits that all ranks have done.
        """
        draws, classes, size = 1 if shots is None else draws, self._labels.shape[1], self._ranks.size
        jobs = [(draw, c) for draw in range(draws) for c in range(classes)]
        found: list[float] = []
        for start in range(0, len(jobs), size):
            mine = jobs[start + self._ranks.rank : start + self._ranks.rank + 1]
            precisions = [self._precision(self.rows(shots, draw), c) for draw, c in mine]
            found += [precision for some in self._ranks.gather(precisions) for precision in some]
            progress(min(size, len(jobs) - start))
        return SVMResult(shots, np.reshape(found, (draws, classes)).mean(axis=1).tolist())

    def rows(self, shots: int | None, draw: int) -> NDArray[np.int64]:
        """Return the train rows of a draw; a row that is drawn for several of its classes stands there several times.

        A class with fewer images gives all it has.
        """
        if shots is None:
            return self._train
        random = np.random.default_rng([self._seed, shots, draw])
        shown = [self._train[self._labels[self._train, c] > 0] for c in range(self._labels.shape[1])]
        return np.concatenate([random.permutation(rows)[:shots] for rows in shown])

    def _precision(self, rows: NDArray[np.int64], c: int) -> float:
        """Return the average precision of one class."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC

        rows = rows[self._labels[rows, c] != 0]
        test = self._test[self._labels[self._test, c] != 0]
        relevant = self._labels[test, c] > 0
        if len(np.unique(self._labels[rows, c])) < 2:  # nothing to tell apart: all test rows are equally likely
            return interpolated_precision(relevant, np.zeros(len(test)))
        settings: dict[str, Any] = {"class_weight": {1: POSITIVE_WEIGHT, -1: 1.0}, "max_iter": MAX_ITERATIONS}
        machine = LinearSVC(C=self._cost, loss="squared_hinge", dual=True, random_state=0, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the published script stops there, too
            machine.fit(self._features[rows], self._labels[rows, c])
        return interpolated_precision(relevant, machine.decision_function(self._features[test]))


def one_vs_all(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return labels (n, C) of 1 and -1 for class numbers (n,)."""
    return np.where(labels[:, None] == np.arange(labels.max() + 1), 1, -1)


def check_svm(cost: float, shots: Sequence[int], draws: int) -> None:
    """Raise an error unless SVMs can be fitted with these settings here.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: cost is not positive and finite, or a number of shots or draws is below 1.
    """
    if not 0 < cost < math.inf:
        raise ValueError(f"cost={cost}: expected a finite number > 0")
    if min(shots, default=1) < 1:
        raise ValueError(f"shots={tuple(shots)}: expected numbers of at least 1")
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least 1")
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("the SVM needs scikit-learn: pip install scikit-learn") from error
