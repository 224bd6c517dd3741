import os

import numpy as np
import pytest
import torch
from conftest import write_png
from hypothesis import given
from hypothesis import strategies as st

from sce_fast.data.index import index_images
from sce_fast.evaluate import knn, knn_top1, linear_top1, load_features, save_features


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
        patch.setattr(knn, "QUERY_BLOCK", blocks[0])
        patch.setattr(knn, "TRAIN_BLOCK", blocks[1])
        found = knn_top1(train, train_labels, test, test_labels, neighbours=k, temperature=0.2)
    assert found == knn_by_loops(train, train_labels, test, test_labels, k, 0.2)


def test_knn_names_bad_input():
    features, labels = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"4 train and 4 test features.*not 3 and 4"):
        knn_top1(features, labels[:3], features, labels)
    with pytest.raises(ValueError, match=r"neighbours=\(0,\)"):
        knn_top1(features, labels, features, labels, neighbours=0)


def test_linear_probe_finds_a_linear_rule_whatever_the_scale():
    features = torch.randn(400, 6) * torch.tensor([1, 100, 1e-3, 1, 1, 1])
    labels = (features[:, 2] > 0).long()
    assert linear_top1(features[:300], labels[:300], features[300:], labels[300:]) > 0.95


def test_feature_file_keeps_names_that_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path / "data") + b"/\xe9t\xe9"
    for name in (b"/a.png", b"/\xff.png"):
        write_png(os.fsdecode(folder + name), np.zeros((4, 4, 3), dtype=np.uint8))
    index = index_images(tmp_path / "data")
    save_features(tmp_path / "features.safetensors", torch.eye(2), index)
    saved = load_features(tmp_path / "features.safetensors")
    assert saved.names == index.listing.names
    assert os.fsencode(saved.names[1]) == b"\xe9t\xe9/\xff.png"
    assert torch.equal(saved.features, torch.eye(2))
    assert saved.classes == [r"\xe9t\xe9"]
