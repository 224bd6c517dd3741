"""Evaluations of feature files, as `sce-fast evaluate` runs them."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.images import write_png
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.sources import Listing
from sce_fast.evaluate import save_features
from sce_fast.tools.embed import embed
from sce_fast.tools.evaluate import knn, labelled_sets, linear


def write_features(path, features, classes):
    """Write a feature file with one row for each entry of classes, in that order."""
    names = sorted(set(classes))
    listing = Listing(path.parent, [f"{i}.png" for i in range(len(classes))], [names.index(c) for c in classes], names)
    save_features(
        path,
        features,
        ImageIndex(listing, np.ones((len(classes), 2), dtype=np.int32), np.zeros(len(classes), dtype=np.bool_), {}),
    )
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
        (tmp_path / "text.safetensors", "text.safetensors is not a feature file"),
        (None, "expected both or neither"),
    ):
        with pytest.raises(ValueError, match=message):
            knn(None, train=train, test=test)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        knn(None, train=train, test=tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="nothing to evaluate"):
        knn(None)


@pytest.mark.parametrize(
    ("call", "setting", "message"),
    [
        (knn, {"neighbours": (10, 0)}, r"neighbours=\(10, 0\): expected one or more numbers, each at least 1"),
        (knn, {"neighbours": ()}, r"neighbours=\(\): expected one or more"),
        (knn, {"temperature": math.inf}, "temperature=inf: expected a finite number > 0"),
        (knn, {"temperature": math.nan}, "temperature=nan: expected a finite number > 0"),
        (knn, {"batch_size": 0}, "batch_size=0: expected at least 1"),
        (linear, {"regularization": (1.0, math.inf)}, r"regularization=\(1.0, inf\): expected one or more finite"),
        (linear, {"regularization": (math.nan,)}, r"regularization=\(nan,\): expected one or more finite"),
        (linear, {"max_iterations": 0}, "max_iterations=0: expected at least 1"),
        (linear, {"batch_size": -1}, "batch_size=-1: expected at least 1"),
        (
            lambda run, **setting: embed(run, Path("data"), **setting),
            {"batch_size": 0},
            "batch_size=0: expected at least 1",
        ),
    ],
)
def test_settings_are_checked_before_any_feature_is_computed(call, setting, message, tmp_path):
    """The run does not even exist, so the settings are looked at first."""
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "nowhere", **setting)


def test_a_missing_library_is_named_before_any_feature_is_computed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="logistic regression needs scikit-learn"):
        linear(tmp_path / "nowhere")
