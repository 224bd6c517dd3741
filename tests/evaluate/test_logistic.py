"""Logistic regression on features: the choice of its regularization, and its accuracy."""

import numpy as np
import pytest
import torch

from sce_fast.evaluate import logistic_accuracy, logistic_top1
from sce_fast.evaluate.logistic import held_out_rows


def test_it_finds_a_linear_rule_whatever_the_scale():
    features = torch.randn(400, 6) * torch.tensor([1, 100, 1e-3, 1, 1, 1])
    labels = (features[:, 2] > 0).long()
    assert logistic_top1(features[:300], labels[:300], features[300:], labels[300:]) > 0.95


def test_it_chooses_its_regularization_on_held_out_rows():
    """With few rows and many noise columns, a weak penalty fits the noise."""
    labels = torch.arange(1000) % 2
    features = torch.randn(1000, 400)
    features[:, :20] += 0.5 * labels[:, None]
    sets = (features[:500], labels[:500], features[500:], labels[500:])
    found = logistic_accuracy(*sets, regularization=(100.0, 0.001, 1.0))
    assert list(found.held_out) == [0.001, 1.0, 100.0]
    assert found.held_out[found.regularization] == max(found.held_out.values())
    assert found.regularization == 0.001
    assert found.accuracy == logistic_accuracy(*sets, regularization=(0.001,)).accuracy
    assert found.accuracy.top1 > logistic_top1(*sets, regularization=100.0)
    assert found.accuracy.top5 is None
    assert found.converged
    assert not logistic_accuracy(*sets, regularization=(100.0,), max_iterations=1).converged


def test_it_says_whether_the_regularization_lies_at_an_edge_of_those_tried():
    labels = torch.arange(100) % 2
    features = torch.randn(100, 40)
    features[:, :8] += 0.5 * labels[:, None]
    sets = (features, labels, features, labels)
    found = logistic_accuracy(*sets, regularization=(0.001, 0.1, 100.0))
    assert found.edge == {0.001: "smallest", 0.1: "", 100.0: "largest"}[found.regularization]
    for grid, edge in (((100.0,), ""), ((10.0, 100.0), "smallest"), ((1e-9, 1e-8, 0.01), "largest")):
        assert logistic_accuracy(*sets, regularization=grid).edge == edge, grid


def test_held_out_rows_are_a_fifth_of_each_class_and_always_the_same():
    labels = np.repeat([0, 1, 2], [50, 9, 4])
    held = held_out_rows(labels)
    assert [int(held[labels == c].sum()) for c in range(3)] == [10, 1, 0]
    assert np.array_equal(held, held_out_rows(labels))


def test_top5_matches_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = torch.randn(300, 5), torch.randint(8, (300,))
    features[:, 0] += labels / 3
    found = logistic_accuracy(features[:200], labels[:200], features[200:], labels[200:], regularization=(1.0,))
    scaler = StandardScaler().fit(features[:200])
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(features[:200]), labels[:200])
    order = np.argsort(-classifier.decision_function(scaler.transform(features[200:])), axis=1)
    top = [np.mean([label in row[:k] for row, label in zip(order, labels[200:], strict=True)]) for k in (1, 5)]
    assert [found.accuracy.top1, found.accuracy.top5] == pytest.approx(top)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularization": (1.0, 0.0)}, r"regularization=\(1.0, 0.0\): expected one or more finite numbers > 0"),
        ({"train_labels": torch.zeros(8, dtype=torch.int64)}, "only one class"),
        ({"test_features": torch.randn(8, 4)}, r"train features are \(3,\) wide, test features \(4,\)"),
        ({"train_labels": torch.arange(8) // 2}, "expected at least 5 rows in a class"),
        ({"test_features": torch.randn(0, 3), "test_labels": torch.zeros(0)}, "expected at least one of each"),
    ],
)
def test_logistic_names_bad_input(changes, message):
    features, labels = torch.randn(8, 3), torch.arange(8) % 2
    sets = {"train_features": features, "train_labels": labels, "test_features": features, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        logistic_accuracy(**{**sets, **changes})
