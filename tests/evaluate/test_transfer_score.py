"""Transfer by logistic regression: known answers, and scikit-learn's optimum."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sce_fast.evaluate.transfer import (
    DECAYS,
    Regression,
    TransferResult,
    TransferSet,
    random_validation,
    transfer_score,
)


def thirds(n):
    return np.array_split(np.arange(n), 3)


def separable(n=90, classes=3):
    """Return rows of the unit matrix, a little apart, with their own number as class."""
    labels = torch.arange(n) % classes
    return torch.eye(classes)[labels] + 0.01 * torch.randn(n, classes), labels


@pytest.mark.parametrize("metric", ["accuracy", "mean per class"])
def test_separable_classes_are_recovered_and_the_smallest_of_equal_decays_is_taken(metric):
    features, labels = separable()
    found = transfer_score(TransferSet(features, labels, *thirds(90)), metric, decays=(1e-3, 1e-2, 1e3))
    assert (found.score, found.top1, found.mean_per_class) == (1, 1, 1)
    assert found.weight_decay == 1e-3
    assert not found.at_edge  # a smaller one would be no better
    assert list(found.validation) == [1e-3, 1e-2, 1e3]


@pytest.mark.parametrize(
    ("scores", "chosen", "at_edge"),
    [
        ({1.0: 0.5}, 1.0, False),
        ({1.0: 0.5, 2.0: 0.4, 3.0: 0.3}, 1.0, True),
        ({1.0: 0.5, 2.0: 0.5, 3.0: 0.3}, 1.0, False),
        ({1.0: 0.5, 2.0: 0.6, 3.0: 0.5}, 2.0, False),
        ({3.0: 0.7, 2.0: 0.6, 1.0: 0.5}, 3.0, True),
        ({1.0: 0.5, 2.0: 0.6}, 2.0, True),
    ],
)
def test_a_best_decay_at_an_edge_is_told(scores, chosen, at_edge):
    assert TransferResult(0.5, "accuracy", 0.5, 0.5, chosen, scores, converged=True).at_edge == at_edge


def test_features_without_a_class_give_chance():
    labels = torch.arange(3000) % 4
    found = transfer_score(TransferSet(torch.randn(3000, 5), labels, *thirds(3000)), "accuracy", decays=(1.0, 100.0))
    assert 0.2 < found.score < 0.3
    assert found.validation.keys() == {1.0, 100.0}


def test_metrics_worked_by_hand():
    """Class 0 has three test rows, one of them on the side of class 1, which has one: 3/4, or the mean of 2/3 and 1."""
    features = torch.tensor([[-1.0], [1.0]] * 4 + [[-1.0], [-1.0], [1.0], [1.0]])
    labels = torch.tensor([0, 1] * 4 + [0, 0, 0, 1])
    rows = (np.arange(4), np.arange(4, 8), np.arange(8, 12))
    found = transfer_score(TransferSet(features, labels, *rows), "accuracy", decays=(1.0,))
    assert found.score == found.top1 == 0.75
    assert found.mean_per_class == pytest.approx((2 / 3 + 1) / 2)
    found = transfer_score(TransferSet(features, labels, *rows), "mean per class", decays=(1.0,))
    assert found.score == found.mean_per_class


def test_several_classes_an_image_worked_by_hand():
    """The second class follows the feature; the first is shown by test rows 1 and 3 of the ranking by its feature."""
    features = torch.tensor([[-1.0, -1.0], [1.0, 1.0]] * 4 + [[3.0, 1.0], [2.0, -1.0], [1.0, 1.0], [9.0, -1.0]])
    labels = torch.tensor([[-1, -1], [1, 1]] * 4 + [[1, 1], [-1, -1], [1, 1], [0, -1]])
    rows = (np.arange(4), np.arange(4, 8), np.arange(8, 12))
    found = transfer_score(TransferSet(features, labels, *rows), "11-point mAP", decays=(1.0,))
    # Both features weigh the same, so the scores of class 0 are 4, 1 and 2; the fourth row is left out. Class 1: 4, 1,
    # 2 and 8, of which the first and third are relevant: interpolated precision 1/2 up to recall 1/2, then 2/3.
    assert found.score == pytest.approx((1 + 2 / 3) / 2)
    assert found.top1 is None


@pytest.mark.parametrize("decay", [0.01, 1.0, 300.0])
def test_a_fit_is_the_optimum_of_scikit_learn(decay):
    features, labels = torch.randn(200, 6, dtype=torch.float64), torch.randint(4, (200,))
    fit = Regression(features, labels, 4, max_iterations=1000)
    assert fit(np.arange(200), decay)
    expected = LogisticRegression(C=1 / decay, max_iter=1000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(fit.weights[:, :-1], expected.coef_, atol=2e-4)
    np.testing.assert_allclose(fit.weights[:, -1] - fit.weights[:, -1].mean(), expected.intercept_, atol=2e-3)


def test_two_outputs_are_one_with_half_the_decay():
    """So the published code counts the decay of VOC's classes: each has weights w and -w."""
    features, labels = torch.randn(100, 3, dtype=torch.float64), torch.randint(2, (100,))
    fit = Regression(features, labels, 2, max_iterations=1000)
    fit(np.arange(100), 2.0)
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(fit.weights[1, :-1] - fit.weights[0, :-1], expected.coef_[0], atol=5e-3)


def test_each_fit_starts_from_the_one_before():
    features, labels = torch.randn(300, 10), torch.randint(3, (300,))
    warm, cold = (Regression(features, labels, 3, max_iterations=n) for n in (1000, 1))
    rows = np.arange(300)
    warm(rows, 1.0)
    weights = warm.weights.copy()
    assert warm(rows, 1.0)  # at the optimum already
    np.testing.assert_allclose(warm.weights, weights, atol=1e-3)
    assert not cold(rows, 1e-3)


def test_the_search_is_the_published_one():
    assert len(DECAYS) == 45
    assert DECAYS[0] == pytest.approx(1e-6)
    assert DECAYS[-1] == pytest.approx(1e5)
    np.testing.assert_allclose(np.diff(np.log10(DECAYS)), 11 / 44)
    train, held = random_validation(np.arange(100, 111))
    assert len(held) == 2  # floor of a fifth
    assert sorted([*train, *held]) == list(range(100, 111))
    order = list(range(11))
    np.random.seed(0)  # noqa: NPY002 (as the published code draws it)
    np.random.shuffle(order)  # noqa: NPY002
    assert held.tolist() == [100 + i for i in order[:2]]


def test_what_does_not_fit_is_refused():
    features, labels = separable()
    rows = thirds(90)
    for data, metric, settings, message in (
        (TransferSet(features, labels, *rows), "accuracy", {"decays": ()}, r"decays=\(\): expected one or more"),
        (TransferSet(features, labels, *rows), "accuracy", {"decays": (0.0,)}, r"decays=\(0.0,\): expected one or"),
        (TransferSet(features, labels, *rows), "accuracy", {"max_iterations": 0}, "max_iterations=0: expected at"),
        (TransferSet(features, labels, *rows), "11-point mAP", {}, r"does not fit labels of the shape \(90,\)"),
        (TransferSet(features, labels, rows[0], rows[1][:0], rows[2]), "accuracy", {}, "has no validation rows"),
    ):
        with pytest.raises(ValueError, match=message):
            transfer_score(data, metric, **settings)
