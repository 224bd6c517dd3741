"""Evaluations on some classes: those that a list names, or those that a run trains on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.backbones import write_backbone
from helpers.images import write_png
from helpers.runs import small_config
from sce_fast.cli import main
from sce_fast.config import EvaluationConfig, to_json
from sce_fast.config.subset import SubsetConfig
from sce_fast.data.class_lists import CLASS_LISTS
from sce_fast.data.image.augment import EvaluationView
from sce_fast.evaluate import load_features
from sce_fast.tools.chosen_sets import ChosenSets, chosen_sets
from sce_fast.train.folder import CONFIG


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Write three classes of two images each in train and test, an unreadable one among the second class."""
    root = tmp_path_factory.mktemp("colours")
    for part in ("train", "val"):
        for c, name in enumerate(("blue", "green", "red")):
            for i in range(2):
                pixels = np.random.default_rng(i).integers(40, size=(20, 20, 3), dtype=np.uint8)
                pixels[..., c] += 200
                write_png(root / part / name / f"{part}{i}.png", pixels)
    (root / "val" / "green" / "val0.png").write_bytes(b"")
    (root / "classes.txt").write_text("red\nblue\n")
    write_backbone(root / "network.safetensors")
    return root


def test_sets_have_the_classes_of_a_list(colours):
    sets = ChosenSets(colours / "train", colours / "val", colours / "classes.txt")
    train, test = sets.indices(EvaluationView(resize=20, crop=20), threads=1)
    for index in (train, test):  # the bad file is of another class
        assert index.listing.classes == ["blue", "red"]
        assert index.labels.tolist() == [0, 0, 1, 1]
    assert sets.choice() == {"chosen_classes": str(colours / "classes.txt")}
    with pytest.raises(ValueError, match="1 empty"):
        ChosenSets(colours / "train", colours / "val", None).indices(EvaluationView(), threads=1)


def test_a_runs_own_sets_have_the_classes_that_it_trains_on(colours, tmp_path):
    config = small_config(colours / "train", tmp_path)
    own = EvaluationConfig(train=colours / "train", test=colours / "val")
    config = replace(config, evaluation=own, subset=SubsetConfig(classes=colours / "classes.txt"))
    (tmp_path / CONFIG).write_text(json.dumps(to_json(config)))
    assert chosen_sets(tmp_path, None, None, None) == ChosenSets(own.train, own.test, colours / "classes.txt")
    assert chosen_sets(tmp_path, own.test, own.train, None) == ChosenSets(own.test, own.train, None)
    named = chosen_sets(tmp_path, None, None, "imagenet100")
    assert str(named.classes) in CLASS_LISTS


@pytest.mark.slow
@pytest.mark.parametrize("method", ["knn", "logistic", "linear", "semi-supervised"])
def test_commands_evaluate_the_classes_of_a_list(colours, tmp_path, method):
    options = {
        "knn": ["--neighbours", "1"],
        "logistic": ["--regularization", "1"],
        "linear": ["--epochs", "1", "--batch-size", "4"],
    }
    options["semi-supervised"] = ["--epochs", "1", "--batch-size", "4", "--share", "1", "--schedule", "cosine"]
    sets = [
        "--train",
        str(colours / "train"),
        "--test",
        str(colours / "val"),
        "--classes",
        str(colours / "classes.txt"),
    ]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    main(["evaluate", method, str(colours / "network.safetensors"), *sets, *out, *options[method]])
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    assert settings["chosen_classes"] == str(colours / "classes.txt")
    assert settings["classes"] == 2


def test_features_of_the_classes_of_a_list(colours, tmp_path, capsys):
    network, chosen = str(colours / "network.safetensors"), ["--classes", str(colours / "classes.txt")]
    for part in ("train", "val"):
        main(["embed", network, str(colours / part), *chosen, "--out", str(tmp_path / part), "--device", "cpu"])
    file = load_features(tmp_path / "val")
    assert (file.classes, file.labels.tolist()) == (["blue", "red"], [0, 0, 1, 1])
    assert file.names == [f"{name}/val{i}.png" for name in ("blue", "red") for i in range(2)]
    sets = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "val")]
    with pytest.raises(SystemExit):
        main(["evaluate", "knn", *sets, *chosen])
    assert "expected none for feature files; choose them by sce-fast embed --classes" in capsys.readouterr().err
    for evaluation in ("knn", "logistic"):
        with pytest.raises(SystemExit):
            main(["evaluate", evaluation, *sets, "--batch-size", "8", "--features", "kept", "--backbone", "resnet50"])
        error = capsys.readouterr().err
        assert "features=kept, batch_size=8, backbone=resnet50: expected none of them, since without a run" in error
