"""Average precision: worked by hand, against scikit-learn, and its limits."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from sce_fast.evaluate.average_precision import eleven_point_precision, interpolated_precision


def test_a_ranking_worked_by_hand():
    """Relevant at ranks 1, 3 and 6: precision 1, 2/3 and 1/2 at recall 1/3, 2/3 and 1."""
    relevant = np.array([True, False, True, False, False, True])
    scores = np.array([6.0, 5, 4, 3, 2, 1])
    assert interpolated_precision(relevant, scores) == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    # Recall 0 to 0.3 is reached at rank 1, 0.4 to 0.6 at rank 3, 0.7 to 1 at rank 6.
    assert eleven_point_precision(relevant, scores) == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11)


def test_interpolation_takes_the_best_precision_at_a_higher_recall():
    """Ranks 2 and 3 are relevant: precision 1/2, then 2/3, which counts for both."""
    relevant, scores = np.array([False, True, True]), np.array([3.0, 2, 1])
    assert interpolated_precision(relevant, scores) == pytest.approx(2 / 3)
    assert eleven_point_precision(relevant, scores) == pytest.approx(2 / 3)


@pytest.mark.parametrize("measure", [eleven_point_precision, interpolated_precision])
def test_perfect_worst_and_undecided_rankings(measure):
    relevant = np.arange(100) < 20
    assert measure(relevant, -np.arange(100.0)) == 1
    assert measure(relevant, np.zeros(100)) == pytest.approx(0.2)  # all rows enter together
    assert measure(relevant, np.arange(100.0)) == pytest.approx(0.2)  # the last row has the best precision


def test_a_recall_of_three_tenths_reaches_the_level_of_three_tenths():
    relevant = np.array([True] * 3 + [False] * 60 + [True] * 7)
    expected = (4 * 1 + 7 * 10 / 70) / 11
    assert eleven_point_precision(relevant, -np.arange(70.0)) == pytest.approx(expected)


def test_both_agree_with_the_curve_of_scikit_learn():
    random = np.random.default_rng(0)
    for ties in (False, True):
        relevant = random.random(300) < 0.2
        scores = random.normal(size=300) + relevant
        scores = np.round(scores) if ties else scores
        precision, recall, _ = precision_recall_curve(relevant, scores)
        precision, recall = precision[:-1], recall[:-1]  # the last point is not of the ranking
        best = [precision[recall >= level - 1e-9].max() for level in np.linspace(0, 1, 11)]
        assert eleven_point_precision(relevant, scores) == pytest.approx(np.mean(best))
        assert interpolated_precision(relevant, scores) >= average_precision_score(relevant, scores)
        steps = np.append(-np.diff(recall), recall[-1])
        area = (np.maximum.accumulate(precision) * steps).sum()  # recall falls along scikit-learn's curve
        assert interpolated_precision(relevant, scores) == pytest.approx(area)


def test_what_cannot_be_ranked_is_refused():
    for relevant, scores, message in (
        (np.array([False, False]), np.zeros(2), "none of 2 rows is relevant"),
        (np.array([True, False]), np.zeros(3), r"relevant has the shape \(2,\), scores \(3,\)"),
        (np.array([True, False]), np.array([1, np.nan]), "1 of 2 scores are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            interpolated_precision(relevant, scores)
