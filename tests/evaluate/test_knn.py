"""kNN against its definition, written as loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from sce_fast.evaluate import Accuracy, knn_accuracy, knn_top1
from sce_fast.evaluate import knn as knn_module
from sce_fast.util.rows import unit_rows


def knn_by_loops(train, train_labels, test, test_labels, k, temperature):
    right = 0
    for row, label in zip(test.numpy(), test_labels.tolist(), strict=True):
        cosines = train.numpy() @ row / (np.linalg.norm(train.numpy(), axis=1) * np.linalg.norm(row))
        votes = np.zeros(int(max(train_labels.max(), test_labels.max())) + 1)
        for i in np.argsort(-cosines)[:k]:
            votes[train_labels[i]] += np.exp(cosines[i] / temperature)
        right += int(votes.argmax() == label)
    return right / len(test)


@given(
    n=st.integers(1, 40),
    m=st.integers(1, 30),
    k=st.integers(1, 50),
    classes=st.integers(1, 6),
    blocks=st.tuples(st.integers(1, 9), st.integers(1, 11)),
)
def test_knn_matches_its_definition_in_any_blocks(n, m, k, classes, blocks):
    generator = torch.Generator().manual_seed(n * 31 + m)
    train, test = (torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in (n, m))
    train_labels, test_labels = (torch.randint(classes, (count,), generator=generator) for count in (n, m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_module, "QUERY_BLOCK", blocks[0])
        patch.setattr(knn_module, "TRAIN_BLOCK", blocks[1])
        found = knn_top1(train, train_labels, test, test_labels, neighbours=k, temperature=0.2)
    assert found == knn_by_loops(train, train_labels, test, test_labels, k, 0.2)


class LargestTensor(TorchFunctionMode):
    """Keeps the number of elements of the largest tensor that a function returns."""

    elements = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("queries", [8, 64, 67])
def test_a_larger_query_set_finds_the_same_rows_in_the_same_blocks(queries, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (90, queries))
    expected, order = (unit_rows(test) @ unit_rows(train).T).topk(4, dim=1)
    monkeypatch.setattr(knn_module, "QUERY_BLOCK", 8)
    monkeypatch.setattr(knn_module, "TRAIN_BLOCK", 40)
    with LargestTensor() as largest:
        similarity, numbers = knn_module.nearest_rows(test, train, 4)
    torch.testing.assert_close(similarity, expected)
    assert numbers.tolist() == order.tolist()
    assert largest.elements == 8 * 40


def test_knn_is_that_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = torch.randn(300, 6, dtype=torch.float64), torch.randn(200, 6, dtype=torch.float64)
    train_labels, test_labels = (train[:, 0] + torch.randn(300) > 0).long(), (test[:, 0] > 0).long()
    for k in (1, 10, 50):
        theirs = KNeighborsClassifier(k, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine")
        expected = theirs.fit(train, train_labels).score(test, test_labels)
        assert 0.6 < expected < 0.95
        assert knn_top1(train, train_labels, test, test_labels, neighbours=k, temperature=0.07) == expected


def test_knn_names_bad_input():
    features, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"4 train and 4 test features.*not 3 and 4"):
        knn_top1(features, labels[:3], features, labels)
    with pytest.raises(ValueError, match=r"neighbours=\(0,\)"):
        knn_top1(features, labels, features, labels, neighbours=0)


@given(
    n=st.integers(5, 40),
    m=st.integers(1, 30),
    neighbours=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    classes=st.integers(1, 9),
)
def test_several_neighbours_and_top5_match_their_definition(n, m, neighbours, classes):
    generator = torch.Generator().manual_seed(n * 31 + m)
    train, test = (torch.randn(count, 5, generator=generator, dtype=torch.float64) for count in (n, m))
    train_labels, test_labels = (torch.randint(classes, (count,), generator=generator) for count in (n, m))
    found = knn_accuracy(train, train_labels, test, test_labels, neighbours=neighbours, temperature=0.2)
    for k, accuracy in zip(neighbours, found, strict=True):
        assert accuracy.top1 == pytest.approx(knn_by_loops(train, train_labels, test, test_labels, k, 0.2))
        right = 0
        for row, label in zip(unit_rows(test), test_labels.tolist(), strict=True):
            cosines = unit_rows(train) @ row
            votes: dict[int, float] = {}
            for i in cosines.argsort(descending=True)[:k].tolist():
                votes[int(train_labels[i])] = votes.get(int(train_labels[i]), 0.0) + float((cosines[i] / 0.2).exp())
            right += label in sorted(votes, key=votes.__getitem__, reverse=True)[:5]
        expected = right / m if len(train_labels.unique()) >= 6 else None
        assert accuracy.top5 == (expected if expected is None else pytest.approx(expected))


def test_knn_at_a_low_temperature_still_votes():
    """exp((cosine − 1) / τ) of the nearest row underflows here, but its class must still win."""
    train = torch.eye(8)
    test = torch.stack([0.01 * train[2] - train[1], train[5]])
    labels = torch.arange(8)
    assert knn_top1(train, labels, test, torch.tensor([2, 5]), neighbours=1, temperature=0.005) == 1.0


def test_a_row_of_nan_is_never_right():
    features, labels = torch.randn(12, 4), torch.arange(12) % 6
    broken = features.clone()
    broken[3] = torch.nan
    (accuracy,) = knn_accuracy(features, labels, broken, labels, neighbours=(1,))
    assert accuracy == Accuracy(11 / 12, 11 / 12, 11 / 12)


def test_knn_tells_of_each_block_of_test_rows():
    train, labels = torch.randn(20, 3), torch.arange(20) % 2
    done = []
    knn_accuracy(train, labels, torch.randn(600, 3), torch.arange(600) % 2, neighbours=(1, 5), progress=done.append)
    assert done == [256, 256, 88]
