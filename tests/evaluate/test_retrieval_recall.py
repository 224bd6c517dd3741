"""Recall of retrieval on constructed features: perfect, chance, a case worked by hand, and numpy."""

import numpy as np
import pytest
import torch

from sce_fast.evaluate import chance_recall, retrieve
from sce_fast.evaluate.retrieval import centred


def test_one_case_by_hand():
    """The mean of the bank is (1, 1), that of the queries (−1, 2).

    Centred, the bank is (2, 0) a, (0, 2) b, (−2, 0) a, (0, −2) b; the queries are (3, 1) b, (−3, −1) b. The cosines of
    the first one are in the ratio 3 : 1 : −3 : −1, so its neighbours are a, b, b, a; those of the second a, b, b, a.
    """
    bank = torch.tensor([[3.0, 1], [1, 3], [-1, 1], [1, -1]])
    queries = torch.tensor([[2.0, 3], [-4, 1]])
    found = retrieve(bank, torch.tensor([0, 1, 0, 1]), queries, torch.tensor([1, 0]), at=(1, 2, 4))
    assert found.nearest.tolist() == [[0, 1, 3, 2], [2, 3, 1, 0]]
    cosines = torch.tensor([3, 1, -1, -3]) / 10**0.5
    torch.testing.assert_close(found.similarity, cosines.expand(2, 4))
    assert found.first_right.tolist() == [1, 0]
    assert found.recall == {1: 0.5, 2: 1.0, 4: 1.0}


def test_without_its_own_mean_a_side_would_be_wrong():
    """A shift of all queries changes nothing: each side is centred by its own mean, not by the other's."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(40, 8, generator=generator), torch.randn(20, 8, generator=generator)
    labels = torch.arange(40) % 5, torch.arange(20) % 5
    found = retrieve(bank, labels[0], queries, labels[1], at=(1, 5))
    shifted = retrieve(bank + 4, labels[0], queries - 8, labels[1], at=(1, 5))
    assert shifted.recall == found.recall
    torch.testing.assert_close(centred(bank).mean(0), torch.zeros(8), atol=1e-6, rtol=0)


def test_perfect_features():
    labels = torch.arange(60) % 6
    found = retrieve(torch.eye(6)[labels] + 3, labels, torch.eye(6)[labels[:12]] - 1, labels[:12])
    assert set(found.recall.values()) == {1.0}
    assert list(found.recall) == [1, 5, 10, 15, 20, 25]
    assert (found.first_right == 0).all()


def test_random_features_reach_chance():
    """2,000 queries: the standard deviation of a share p is at most 0.5 / √2000 = 0.011."""
    generator = torch.Generator().manual_seed(0)
    bank, queries = torch.randn(300, 16, generator=generator), torch.randn(2000, 16, generator=generator)
    labels = (torch.arange(300) % 12) ** 2 % 12, torch.arange(2000) % 12
    found, expected = retrieve(bank, labels[0], queries, labels[1]).recall, chance_recall(*labels)
    assert found == pytest.approx(expected, abs=0.04)
    assert expected[1] == pytest.approx(torch.bincount(labels[0], minlength=12)[labels[1]].double().mean().item() / 300)


def test_chance_by_hand():
    """Of four items two have the class: 1 − 2/4, 1 − (2/4)(1/3), 1. A class that the bank lacks is never found."""
    bank = torch.tensor([0, 0, 1, 1])
    assert chance_recall(bank, torch.tensor([0]), at=(1, 2, 3, 9)) == pytest.approx({1: 0.5, 2: 5 / 6, 3: 1, 9: 1})
    assert chance_recall(bank, torch.tensor([0, 2]), at=(1, 2)) == pytest.approx({1: 0.25, 2: 5 / 12})


def test_against_numpy(monkeypatch):
    """Blocks of the search change nothing."""
    from sce_fast.evaluate import knn

    monkeypatch.setattr(knn, "TRAIN_BLOCK", 13)
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(50, 7)) + 1, rng.normal(size=(31, 7)) * 2
    labels = rng.integers(0, 9, 50), rng.integers(0, 9, 31)
    a, b = bank - bank.mean(0), queries - queries.mean(0)
    cosines = (b / np.linalg.norm(b, axis=1, keepdims=True)) @ (a / np.linalg.norm(a, axis=1, keepdims=True)).T
    order = np.argsort(-cosines, axis=1)
    right = labels[0][order] == labels[1][:, None]
    found = retrieve(*(torch.from_numpy(x) for x in (bank, labels[0], queries, labels[1])))
    assert found.nearest.tolist() == order[:, :25].tolist()
    assert found.recall == {k: right[:, :k].any(1).mean() for k in (1, 5, 10, 15, 20, 25)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": (1, 0)}, r"at=\(1, 0\): expected one or more numbers, each at least 1"),
        ({"at": ()}, r"at=\(\): expected one or more"),
        ({"at": (5,)}, r"at=\(5,\): expected numbers up to 4, the size of the bank"),
        ({"queries": torch.eye(2)}, "bank features are .4,. wide, queries features .2,.: expected the same width"),
        ({"queries": torch.eye(4)}, "4 bank and 4 queries features: expected as many labels, not 4 and 2"),
        ({"queries": torch.eye(4)[:1], "query_labels": torch.arange(1)}, "1 queries: expected at least 2"),
        ({"queries": torch.full((2, 4), torch.nan)}, "queries: 2 of 2 feature rows are not finite"),
    ],
)
def test_wrong_arguments(change, message):
    sets = {"bank": torch.eye(4), "bank_labels": torch.arange(4), "queries": torch.eye(4)[:2]}
    with pytest.raises(ValueError, match=message):
        retrieve(**{**sets, "query_labels": torch.arange(2), "at": (1, 2), **change})
