"""Evaluations as `sce-fast evaluate` runs them."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.images import write_png
from helpers.runs import small_config
from sce_fast.config import EvaluationConfig
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.sources import Listing, Names
from sce_fast.evaluate import save_features
from sce_fast.evaluate.results import read_result
from sce_fast.tools.embed import embed
from sce_fast.tools.evaluate import knn, logistic
from sce_fast.tools.labelled_sets import labelled_sets
from sce_fast.train import Trainer


def write_features(path, features, classes):
    """Write a feature file with one row for each entry of classes, in that order."""
    names = sorted(set(classes))
    labels = np.array([names.index(name) for name in classes])
    listing = Listing(path.parent, Names.of(f"{i}.png" for i in range(len(classes))), labels, names)
    save_features(
        path,
        features,
        ImageIndex(listing, np.ones((len(classes), 2), dtype=np.int32), np.zeros(len(classes), dtype=np.uint8), {}),
    )
    return path


def test_feature_files_are_matched_by_class_names(tmp_path, capsys):
    train = write_features(tmp_path / "a.safetensors", torch.eye(4), ["ape", "bat", "cat", "dog"])
    test = write_features(tmp_path / "b.safetensors", torch.eye(4)[[3, 1]] + 0.1, ["dog", "bat"])
    sets = labelled_sets(None, train, test, batch_size=None, device="cpu")
    assert sets.test_labels.tolist() == [3, 1]
    out = tmp_path / "result"
    paths = {"train": str(train), "test": str(test), "out": str(out)}  # strings are paths, too
    found = knn(None, **paths, neighbours=(1, 2), device="cpu")
    assert found == read_result(out)
    assert (out / "table.txt").read_text() == found.table() + "\n"
    assert (out / "knn.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{found.table()}\n\nIn {out}: knn.png, results.json, table.txt\n"
    assert found.evaluation == "knn"
    names = ("train_images", "test_images", "classes", "dim", "neighbours", "temperature")
    assert [found.settings[name] for name in names] == [4, 2, 4, 4, [1, 2], 0.07]
    right = {"top1": 1.0, "top5": None, "mean_per_class": 1.0}
    assert found.rows[0] == {"features": "backbone", "neighbours": 1, **right}
    with pytest.raises(ValueError, match=r"out=\S*result holds results already; pass --resume"):
        knn(None, train=train, test=test, out=out)
    assert knn(None, **paths, neighbours=(1, 2), device="cpu", resume=True) == found
    with pytest.raises(ValueError, match=r"other settings(.|\n)*neighbours: \[1, 2\] then, \[1\] now"):
        knn(None, **paths, neighbours=(1,), device="cpu", resume=True)


def test_top5_is_told_from_six_classes_on(tmp_path):
    for classes in ("abcde", "abcdef"):
        rows = write_features(tmp_path / f"{classes}.safetensors", torch.eye(6)[: len(classes)], list(classes))
        text = knn(None, train=rows, test=rows, neighbours=(1,), device="cpu").table()
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
        (logistic, {"regularization": (1.0, math.inf)}, r"regularization=\(1.0, inf\): expected one or more finite"),
        (logistic, {"regularization": (math.nan,)}, r"regularization=\(nan,\): expected one or more finite"),
        (logistic, {"max_iterations": 0}, "max_iterations=0: expected at least 1"),
        (logistic, {"batch_size": -1}, "batch_size=-1: expected at least 1"),
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
        logistic(tmp_path / "nowhere")


def test_long_classifications_show_progress(tmp_path, monkeypatch, capsys):
    rows = write_features(tmp_path / "rows.safetensors", torch.randn(12, 4), ["ape", "bat"] * 6)
    call = {"train": rows, "test": rows, "device": "cpu"}
    for few in (True, False):
        if not few:
            monkeypatch.setattr("sce_fast.tools.evaluate.FEW_PAIRS", 143)
            monkeypatch.setattr("sce_fast.tools.evaluate.FEW_NUMBERS", 95)
        knn(None, **call, neighbours=(1,))
        logistic(None, **call, regularization=(0.1, 1.0))
        logistic(None, **call, regularization=(1.0,))
        lines = [line.partition(" [")[0] for line in capsys.readouterr().err.splitlines() if "/" in line]
        ends = ["kNN: sample 12/12", "Logistic regression: fit 3/3", "Logistic regression: fit 1/1"]
        assert [line for line in lines if line in ends] == ([] if few else ends)
        assert few == ("kNN" not in str(lines))


def test_numbers_of_neighbours_above_that_of_the_images_are_left_out_or_refused(tmp_path):
    train = write_features(tmp_path / "train.safetensors", torch.eye(4), ["ape", "bat", "cat", "dog"])
    found = knn(None, train=train, test=train, neighbours=(5, 2, 4, 200), device="cpu")
    assert found.notes == ["5, 200 neighbours are left out: there are only 4 train images"]
    assert [row.get("neighbours") for row in found.rows] == [2, 4, None]
    with pytest.raises(ValueError, match=r"neighbours=\(10, 20, 100, 200\): expected numbers up to 4, the number of"):
        knn(None, train=train, test=train, device="cpu")


def test_shared_samples_are_told_before_and_in_the_table_and_file(tmp_path, capsys):
    classes = ["ape", "bat"] * 6
    train = write_features(tmp_path / "train.safetensors", torch.randn(12, 4), classes)
    other = write_features(tmp_path / "other.safetensors", torch.randn(12, 4), classes)
    for evaluate in (knn, logistic):
        found = evaluate(None, train=train, test=train, device="cpu")
        assert "12 train and 12 test images (12 of them in train), 2 classes" in found.title
        assert found.settings["test_images_in_train"] == 12
        assert "Warning: 12 of 12 samples in test are in train too, so the accuracy " in capsys.readouterr().err
        found = evaluate(None, train=train, test=other, device="cpu")
        assert "12 train and 12 test images, 2 classes" in found.title
        assert capsys.readouterr().err == ""


def test_the_majority_class_is_a_row_and_feature_files_have_no_other_baselines(tmp_path, capsys):
    train = write_features(tmp_path / "train.safetensors", torch.randn(30, 4), ["ape"] * 20 + ["bat"] * 10)
    test = write_features(tmp_path / "test.safetensors", torch.randn(4, 4), ["ape", "bat", "bat", "bat"])
    found = logistic(None, train=train, test=test, regularization=(1.0,), baselines=True, device="cpu")
    _, majority = found.rows
    assert majority == {"features": "majority class", "top1": 0.25, "top5": None, "mean_per_class": 0.5}
    assert "no --baselines: raw pixels and an untrained network need the images" in capsys.readouterr().err


def test_an_edge_of_the_regularizations_is_told(tmp_path):
    train = write_features(tmp_path / "train.safetensors", torch.randn(60, 4), ["ape", "bat"] * 30)
    out = tmp_path / "logistic"
    found = logistic(None, train=train, test=train, regularization=(1e-9, 1e-8), out=out, device="cpu")
    assert (out / "logistic.png").exists()
    chosen, text = found.rows[0], found.table()
    assert chosen["regularization_at_edge"]
    edge, beyond = ("smallest", "smaller") if chosen["regularization"] == 1e-9 else ("largest", "larger")
    assert (
        f"\nWarning: C {chosen['regularization']:g} is the {edge} value tried; a {beyond} --regularization may" in text
    )
    assert logistic(None, train=train, test=train, regularization=(1.0,), device="cpu").notes == []


@pytest.fixture
def two_classes(tmp_path):
    """Return class folders of 20 train and 10 test images, 40 pixels wide: red and green noise."""
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 5)):
        for channel, name in enumerate(("red", "green")):
            for i in range(count):
                pixels = random.integers(60, size=(40, 40, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                write_png(tmp_path / part / name / f"{part}{i}.png", pixels)
    return tmp_path / "train", tmp_path / "test"


def untrained_run(config):
    """Return the folder of a run that has saved before its first step."""
    trainer = Trainer(config)
    trainer.state.save()
    trainer.log.close()
    return config.out


@pytest.mark.parametrize("evaluate", [knn, logistic])
def test_baselines_are_raw_pixels_and_the_network_before_training(tmp_path, two_classes, evaluate):
    train, test = two_classes
    config = small_config(train, tmp_path / "run", evaluation=EvaluationConfig(resize=40, crop=40))
    run = untrained_run(config)
    settings = {"neighbours": (3, 5)} if evaluate is knn else {"regularization": (1.0,)}
    found = evaluate(run, train=train, test=test, baselines=True, device="cpu", **settings)
    by_name = {row["features"]: row for row in found.rows}
    assert list(by_name) == ["backbone", "majority class", "raw pixels (32 × 32)", "untrained network"]
    assert len(found.rows) == 1 + 3 * (len(settings["neighbours"]) if evaluate is knn else 1)
    assert by_name["majority class"]["top1"] == 0.5
    assert by_name["raw pixels (32 × 32)"]["top1"] == 1.0


def test_the_untrained_network_is_the_one_that_a_run_began_with(photo_folder, tmp_path):
    """Before its first step, a run's own features are those of its baseline."""
    run = untrained_run(small_config(photo_folder, tmp_path / "run"))
    sets = labelled_sets(run, None, None, batch_size=24, device="cpu")
    (_, _), (name, untrained) = sets.baselines()
    assert name == "untrained network"
    assert torch.equal(untrained.train_features, sets.train_features)
