import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.images import write_png
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.sources import Listing
from sce_fast.evaluate import (
    Accuracy,
    knn_accuracy,
    knn_top1,
    linear_accuracy,
    linear_top1,
    load_features,
    save_features,
)
from sce_fast.evaluate import knn as knn_module
from sce_fast.evaluate.logistic import held_out_rows
from sce_fast.tools.evaluate import knn, labelled_sets
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
    """exp((cosine − 1) / τ) of the nearest row underflows here; its class must win all the same."""
    train = torch.eye(8)
    test = torch.stack([0.01 * train[2] - train[1], train[5]])
    labels = torch.arange(8)
    assert knn_top1(train, labels, test, torch.tensor([2, 5]), neighbours=1, temperature=0.005) == 1.0


def test_a_row_of_nan_is_never_right():
    features, labels = torch.randn(12, 4), torch.arange(12) % 6
    broken = features.clone()
    broken[3] = torch.nan
    (accuracy,) = knn_accuracy(features, labels, broken, labels, neighbours=(1,))
    assert accuracy == Accuracy(11 / 12, 11 / 12)


def test_linear_probe_chooses_its_regularization_on_held_out_rows():
    """Few rows, many columns of noise: a weak penalty fits the noise."""
    labels = torch.arange(1000) % 2
    features = torch.randn(1000, 400)
    features[:, :20] += 0.5 * labels[:, None]
    sets = (features[:500], labels[:500], features[500:], labels[500:])
    found = linear_accuracy(*sets, regularization=(100.0, 0.001, 1.0))
    assert list(found.held_out) == [0.001, 1.0, 100.0]
    assert found.held_out[found.regularization] == max(found.held_out.values())
    assert found.regularization == 0.001
    assert found.accuracy == linear_accuracy(*sets, regularization=(0.001,)).accuracy
    assert found.accuracy.top1 > linear_top1(*sets, regularization=100.0)
    assert found.accuracy.top5 is None
    assert found.converged
    assert not linear_accuracy(*sets, regularization=(100.0,), max_iterations=1).converged


def test_held_out_rows_are_a_fifth_of_each_class_and_always_the_same():
    labels = np.repeat([0, 1, 2], [50, 9, 4])
    held = held_out_rows(labels)
    assert [int(held[labels == c].sum()) for c in range(3)] == [10, 1, 0]
    assert np.array_equal(held, held_out_rows(labels))


def test_linear_top5_matches_scikit_learn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, labels = torch.randn(300, 5), torch.randint(8, (300,))
    features[:, 0] += labels / 3
    found = linear_accuracy(features[:200], labels[:200], features[200:], labels[200:], regularization=(1.0,))
    scaler = StandardScaler().fit(features[:200])
    probe = LogisticRegression(max_iter=1000).fit(scaler.transform(features[:200]), labels[:200])
    order = np.argsort(-probe.decision_function(scaler.transform(features[200:])), axis=1)
    top = [np.mean([label in row[:k] for row, label in zip(order, labels[200:], strict=True)]) for k in (1, 5)]
    assert [found.accuracy.top1, found.accuracy.top5] == pytest.approx(top)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularization": (1.0, 0.0)}, r"regularization=\(1.0, 0.0\): expected numbers > 0"),
        ({"train_labels": torch.zeros(8, dtype=torch.int64)}, "one class only"),
        ({"test_features": torch.randn(8, 4)}, r"train features are \(3,\) wide, test features \(4,\)"),
        ({"train_labels": torch.arange(8) // 2}, "5 rows of a class are needed to choose"),
        ({"test_features": torch.randn(0, 3), "test_labels": torch.zeros(0)}, "expected some of each"),
    ],
)
def test_linear_names_bad_input(changes, message):
    features, labels = torch.randn(8, 3), torch.arange(8) % 2
    sets = {"train_features": features, "train_labels": labels, "test_features": features, "test_labels": labels}
    with pytest.raises(ValueError, match=message):
        linear_accuracy(**{**sets, **changes})


def write_features(path, features, classes):
    """A feature file of one row for each entry of classes, in that order."""
    names = sorted(set(classes))
    listing = Listing(path.parent, [f"{i}.png" for i in range(len(classes))], [names.index(c) for c in classes], names)
    save_features(path, features, ImageIndex(listing, np.ones((len(classes), 2), dtype=np.int32), {}))
    return path


def test_feature_files_are_matched_by_class_names(tmp_path):
    train = write_features(tmp_path / "a.safetensors", torch.eye(4), ["ape", "bat", "cat", "dog"])
    test = write_features(tmp_path / "b.safetensors", torch.eye(4)[[3, 1]] + 0.1, ["dog", "bat"])
    sets = labelled_sets(None, train, test, batch_size=1, device="cpu")
    assert sets.test_labels.tolist() == [3, 1]
    out = tmp_path / "result.json"
    assert "1 neighbours" in knn(None, train=train, test=test, neighbours=(1, 2), out=out, device="cpu")
    written = json.loads(out.read_text())
    assert written["evaluation"] == "knn"
    assert (written["train_images"], written["test_images"], written["classes"], written["dim"]) == (4, 2, 4, 4)
    assert written["results"][0] == {"neighbours": 1, "temperature": 0.07, "top1": 1.0, "top5": None}
    with pytest.raises(ValueError, match=r"out=\S*result.json exists already"):
        knn(None, train=train, test=test, out=out)


def test_top5_is_told_from_six_classes_on(tmp_path):
    for classes in ("abcde", "abcdef"):
        rows = write_features(tmp_path / f"{classes}.safetensors", torch.eye(6)[: len(classes)], list(classes))
        text = knn(None, train=rows, test=rows, neighbours=(1,), device="cpu")
        assert ("top-5" in text) == (len(classes) == 6)


def test_evaluation_names_what_is_wrong_with_feature_files(tmp_path):
    train = write_features(tmp_path / "train.safetensors", torch.eye(3), ["ape", "bat", "cat"])
    more = write_features(tmp_path / "more.safetensors", torch.eye(3)[:2], ["ape", "eel"])
    wide = write_features(tmp_path / "wide.safetensors", torch.ones(1, 5), ["ape"])
    nan = write_features(tmp_path / "nan.safetensors", torch.full((1, 3), torch.nan), ["ape"])
    write_png(tmp_path / "flat" / "1.png", np.zeros((4, 4, 3), dtype=np.uint8))
    flat = tmp_path / "flat.safetensors"
    save_features(flat, torch.ones(1, 3), index_images(tmp_path / "flat"))
    (tmp_path / "text.safetensors").write_text("no tensors")
    for test, message in (
        (more, r"more.safetensors has classes that \S*train.safetensors lacks: eel"),
        (wide, "train.safetensors has features of 3 numbers, .*wide.safetensors of 5; "),
        (nan, "nan.safetensors: 1 of 1 feature rows are not finite"),
        (flat, "flat.safetensors has no labels"),
        (tmp_path / "flat", "flat is a folder of images; also give the run or exported backbone"),
        (tmp_path / "text.safetensors", "text.safetensors is no feature file"),
        (None, "expected both or neither"),
    ):
        with pytest.raises(ValueError, match=message):
            knn(None, train=train, test=test)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        knn(None, train=train, test=tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="nothing to evaluate"):
        knn(None)


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


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features": torch.zeros(4)}, r"features have the shape \(4,\), expected \(4, F\)"),
        ({"features": torch.zeros(3, 2)}, r"features have the shape \(3, 2\), expected \(4, F\)"),
        ({"labels": torch.zeros(4)}, r"labels are torch.float32 \(4,\), expected int64 \(4,\)"),
        ({"labels": torch.tensor([0, 1, 2, 0])}, "labels go from 0 to 2, expected 0 to 1"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, "labels go from -1 to 1, expected 0 to 1"),
    ],
)
def test_feature_files_from_elsewhere_are_checked(tmp_path, tensors, message):
    path = tmp_path / "features.safetensors"
    good = {
        "features": torch.zeros(4, 2), "labels": torch.tensor([0, 1, 1, 0]), "name_ends": torch.arange(1, 5),
        "names": torch.frombuffer(bytearray(b"abcd"), dtype=torch.uint8),
    }  # fmt: skip
    save_file({**good, **tensors}, path, metadata={"classes": '["x", "y"]'})
    with pytest.raises(ValueError, match=message):
        load_features(path)
