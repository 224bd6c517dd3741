"""kNN and logistic regression on features whose answer is known."""

import math

import pytest
import torch

from sce_fast.evaluate import knn_accuracy, knn_top1, logistic_accuracy, logistic_top1


@pytest.mark.parametrize("top1", [knn_top1, logistic_top1])
def test_perfect_features(top1):
    labels = torch.arange(60) % 6
    rows = torch.eye(6)[labels] + 0.01 * torch.randn(60, 6)
    assert top1(rows[:30], labels[:30], rows[30:], labels[30:]) == 1


@pytest.mark.parametrize("top1", [knn_top1, logistic_top1])
def test_features_without_a_class_give_chance(top1):
    labels = torch.arange(2000) % 4
    rows = torch.randn(2000, 6)
    assert 0.2 < top1(rows[:1000], labels[:1000], rows[1000:], labels[1000:]) < 0.3


def test_votes_worked_by_hand():
    """A row at 0°; neighbours at 10° (class 0), 20° and 20° (class 1), with votes exp(cosine / 0.07).

    Two votes exp((cos 20° − cos 10°) / 0.07) = 0.525 outweigh one of 1 together; at temperature 0.05 they do not.
    """

    def at(*degrees):
        return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])

    train, labels = at(10, 20, -20), torch.tensor([0, 1, 1])
    votes = math.exp((math.cos(math.radians(20)) - math.cos(math.radians(10))) / 0.07)
    assert votes == pytest.approx(0.525, abs=1e-3)
    test, truth = at(0), torch.tensor([1])
    found = knn_accuracy(train, labels, test, truth, neighbours=(1, 2, 3), temperature=0.07)
    assert [accuracy.top1 for accuracy in found] == [0, 0, 1]
    assert knn_accuracy(train, labels, test, truth, neighbours=(3,), temperature=0.05)[0].top1 == 0


def test_a_threshold_worked_by_hand():
    """Train rows at -1 and 1 put the border at 0, so of test rows -2, -1, 1 (class 0) and 3 (class 1) one is wrong."""
    train, labels = torch.tensor([[-1.0], [1.0]] * 5), torch.tensor([0, 1] * 5)
    test, truth = torch.tensor([[-2.0], [-1.0], [1.0], [3.0]]), torch.tensor([0, 0, 0, 1])
    found = logistic_accuracy(train, labels, test, truth, regularization=(1.0,)).accuracy
    assert found.top1 == 0.75
    assert found.mean_per_class == pytest.approx((2 / 3 + 1) / 2)
