"""Accuracies against scikit-learn's, and the majority class."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from sce_fast.evaluate import Accuracy, majority_accuracy
from sce_fast.evaluate.accuracy import ranks_of_truth


def test_accuracies_are_scikit_learns():
    labels, scores = torch.randint(7, (90,)) ** 2 % 7, torch.randn(90, 7)
    found = Accuracy.of_ranks(ranks_of_truth(scores, labels), labels, torch.arange(7))
    answers = scores.argmax(1)
    assert found.top1 == pytest.approx(accuracy_score(labels, answers))
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=np.arange(7)))
    assert found.mean_per_class == pytest.approx(balanced_accuracy_score(labels, answers))


def test_the_majority_class_is_that_of_train():
    train, test = torch.tensor([0, 2, 2, 3]), torch.tensor([2, 2, 0, 1])
    dummy = DummyClassifier(strategy="most_frequent").fit(np.zeros((4, 1)), train)
    found = majority_accuracy(train, test)
    assert found.top1 == dummy.score(np.zeros((4, 1)), test) == 0.5
    assert found.mean_per_class == pytest.approx(1 / 3)
    assert found.top5 is None


def test_the_five_most_frequent_classes():
    train = torch.arange(7).repeat_interleave(torch.tensor([9, 8, 1, 7, 6, 5, 2]))
    assert majority_accuracy(train, torch.tensor([5, 6, 2, 4])).top5 == 0.5
