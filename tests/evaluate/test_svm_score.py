"""One-vs-all SVMs: known answers, and draws of few images."""

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve
from sklearn.svm import LinearSVC

from sce_fast.evaluate.svm import SVMEvaluation, one_vs_all

TRAIN, TEST = np.arange(60), np.arange(60, 120)


def separable(classes=3):
    numbers = torch.arange(120) % classes
    return torch.eye(classes)[numbers] * 5 + 0.05 * torch.randn(120, classes), one_vs_all(numbers.numpy())


def test_separable_classes_are_recovered_from_few_images_and_from_all():
    evaluation = SVMEvaluation(*separable(), TRAIN, TEST)
    assert evaluation.score(2, draws=3).draws == [1, 1, 1]
    found = evaluation.score()
    assert (found.shots, found.mean, found.std, found.draws) == (None, 1, 0, [1])


def test_features_without_a_class_give_the_share_of_a_class():
    evaluation = SVMEvaluation(torch.ones(120, 4), separable()[1], TRAIN, TEST)
    assert evaluation.score().mean == pytest.approx(1 / 3)  # all scores are equal
    assert evaluation.score(1, draws=2).std == 0


def test_one_class_worked_by_hand():
    """The first feature decides. Of three test rows, the first and third are of class 0: (1 + 2 / 3) / 2."""
    features = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0], [10.0, 1], [10, 5], [10, 9]])
    labels = np.array([[1, -1], [-1, 1], [1, -1], [-1, 1], [1, -1], [-1, 1], [1, -1]])
    evaluation = SVMEvaluation(features, labels, np.arange(4), np.arange(4, 7))
    # The other class ranks the test rows the other way round; its one row is second: 1 / 2.
    assert evaluation.score().mean == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_a_score_is_that_of_scikit_learn_on_unit_features():
    torch.manual_seed(1)
    numbers = np.arange(120) % 2
    features = torch.randn(120, 5) + torch.from_numpy(numbers)[:, None]
    found = SVMEvaluation(features, one_vs_all(numbers), TRAIN, TEST, cost=0.5).score()
    rows = (features / (features.norm(dim=1, keepdim=True) + 1e-5)).numpy()
    expected = []
    for c in (0, 1):
        machine = LinearSVC(C=0.5, class_weight={True: 2, False: 1}, dual=True, random_state=0, max_iter=2000)
        machine.fit(rows[TRAIN], numbers[TRAIN] == c)
        precision, recall, _ = precision_recall_curve(numbers[TEST] == c, machine.decision_function(rows[TEST]))
        expected.append(-(np.maximum.accumulate(precision[:-1]) * np.diff(recall)).sum())
    assert 0.6 < found.mean < 0.95
    assert found.mean == pytest.approx(np.mean(expected), abs=1e-6)


def test_draws_take_so_many_images_of_each_class_and_are_seeded():
    features, labels = separable()
    labels[:, 2] = 1  # shown by every image: its draws repeat rows of the other classes
    evaluation = SVMEvaluation(features, labels, TRAIN, TEST)
    rows = evaluation.rows(4, 0)
    assert len(rows) == 12
    assert set(rows) <= set(TRAIN)
    assert (labels[rows[:4], 0] == 1).all()
    assert (labels[rows[4:8], 1] == 1).all()
    assert np.array_equal(rows, SVMEvaluation(features, labels, TRAIN, TEST).rows(4, 0))
    assert not np.array_equal(rows, evaluation.rows(4, 1))
    assert not np.array_equal(rows, SVMEvaluation(features, labels, TRAIN, TEST, seed=1).rows(4, 0))
    assert len(evaluation.rows(1000, 0)) == 20 + 20 + 60
    assert evaluation.score(1, draws=2).draws[0] <= 1


def test_left_out_rows_count_neither_in_training_nor_in_the_test():
    features, labels = separable()
    expected = SVMEvaluation(features, labels, TRAIN[:30], TEST[:30]).score()
    wrong = torch.cat([features, -features[:30]])
    more = np.concatenate([labels, 0 * labels[:30]])
    extra = np.arange(120, 150)
    rows = np.concatenate([TRAIN[:30], extra]), np.concatenate([TEST[:30], extra])
    assert SVMEvaluation(wrong, more, *rows).score().draws == expected.draws


def test_what_does_not_fit_is_refused():
    features, labels = separable()
    with pytest.raises(ValueError, match="cost=0: expected a finite number > 0"):
        SVMEvaluation(features, labels, TRAIN, TEST, cost=0)
    with pytest.raises(ValueError, match="class 1 has no test image: expected at least one of each class"):
        SVMEvaluation(features, labels, TRAIN, TEST[::3])
