"""Kept features are used only for the same weights, view and files."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from torch import nn

from sce_fast.data.faults import BadFilesError
from sce_fast.data.image.augment import EvaluationView
from sce_fast.data.index import ImageIndex
from sce_fast.data.sources import Listing, Names
from sce_fast.distributed import Ranks
from sce_fast.evaluate import FeatureStore, load_features, store
from sce_fast.evaluate.store import shared_features, weights_digest

CPU = torch.device("cpu")
VIEW = EvaluationView(resize=8, crop=8)


@pytest.fixture
def index(tmp_path):
    names = [f"{i}.png" for i in range(4)]
    for name in names:
        (tmp_path / name).write_text("pixels")
    listing = Listing(tmp_path, Names.of(names), np.array([0, 1, 0, 1]), ["a", "b"])
    return ImageIndex(listing, np.ones((4, 2), np.int32), np.zeros(4, np.uint8), {})


@pytest.fixture
def computed(monkeypatch):
    """Replace the extraction by one that counts; features are the sum of the weights and the sample's number."""
    calls = []

    def extract(backbone, index, view, *, progress, **settings):
        calls.append(index.listing.names)
        progress(len(index))
        return torch.stack([torch.full((3,), backbone.weight.sum().item()), torch.arange(3.0)])[[0] * len(index)]

    monkeypatch.setattr(store, "extract_features", extract)
    return calls


def features_of(folder, index, network, view=VIEW, architecture=None, title="train"):
    return FeatureStore(folder, network, architecture or {}, device=CPU).features(index, view, title)


def test_features_are_computed_once_and_kept_with_names_and_labels(tmp_path, index, computed):
    network, folder = nn.Linear(2, 2), tmp_path / "features"
    first = features_of(folder, index, network)
    assert torch.equal(features_of(folder, index, network), first)
    assert computed == [index.listing.names]
    (path,) = folder.iterdir()
    assert path.name.startswith("train_")
    file = load_features(path)
    assert (file.names, file.labels.tolist(), file.classes) == (index.listing.names, [0, 1, 0, 1], ["a", "b"])
    assert torch.equal(file.features, first)


def test_a_change_of_anything_that_features_depend_on_computes_them_again(tmp_path, index, computed):
    folder, network = tmp_path / "features", nn.Linear(2, 2)
    features_of(folder, index, network)
    expected = 1
    for change in (
        {"view": EvaluationView(resize=8, crop=8, interpolation="bicubic")},
        {"view": EvaluationView(resize=9, crop=8)},
        {"architecture": {"small_input": True}},
        {"network": nn.Linear(2, 2)},
        {"index": index.subset(np.array([1, 0, 2, 3]))},
        {"index": index.subset(np.array([0, 1, 2]))},
    ):
        features_of(folder, **{"index": index, "network": network, **change})
        expected += 1
        assert len(computed) == expected, change
    with torch.no_grad():
        network.weight[0, 0] += 1
    features_of(folder, index, network)
    os.utime(tmp_path / "2.png", (1, 1))
    features_of(folder, index, network)
    (tmp_path / "2.png").write_text("others")
    features_of(folder, index, network)
    assert len(computed) == expected + 3
    features_of(folder, index, network)
    assert len(computed) == expected + 3


def test_a_damaged_file_is_told_and_computed_again(tmp_path, index, computed, capsys):
    network, folder = nn.Linear(2, 2), tmp_path / "features"
    features_of(folder, index, network)
    (path,) = folder.iterdir()
    path.write_bytes(b"no tensors")
    features_of(folder, index, network)
    assert "is not a feature file" in capsys.readouterr().err
    store.save_features(path, torch.zeros(2, 3), index.subset(np.array([0, 1])))
    features_of(folder, index, network)
    assert "holds features of other files; they are computed again" in capsys.readouterr().err
    assert len(computed) == 3
    assert len(load_features(path).features) == 4


def test_without_a_folder_nothing_is_kept(tmp_path, index, computed):
    before = set(tmp_path.rglob("*"))
    for _ in range(2):
        features_of(None, index, nn.Linear(2, 2))
    assert len(computed) == 2
    assert set(tmp_path.rglob("*")) == before


def test_bad_files_stop_before_and_while_features_are_computed(index, monkeypatch):
    bad = dataclasses.replace(index, bad={1: "missing"})
    with pytest.raises(ValueError, match="1 of 4 files cannot be used"):
        shared_features(nn.Linear(2, 2), bad, VIEW, ranks=Ranks(), device=CPU)

    def fail(*arguments, **settings):
        raise BadFilesError("2.png: damaged")

    monkeypatch.setattr(store, "extract_features", fail)
    with pytest.raises(BadFilesError, match="damaged"):
        shared_features(nn.Linear(2, 2), index, VIEW, ranks=Ranks(), device=CPU)


def test_features_that_are_not_finite_are_refused_and_not_kept(tmp_path, index, computed):
    network = nn.Linear(2, 2)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(ValueError, match="pets: 4 of 4 feature rows are not finite"):
        features_of(tmp_path / "features", index, network, title="pets")
    assert not list((tmp_path / "features").iterdir())


def test_the_digest_follows_every_parameter_and_buffer():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    digests = {weights_digest(network)}
    for tensor in network.state_dict().values():
        tensor.add_(1)
        digests.add(weights_digest(network))
    assert len(digests) == 1 + len(network.state_dict())
    assert weights_digest(network) == weights_digest(network.eval())
