"""The command evaluate detection on features that are kept, and on feature files."""

import json
import os
import shutil
import signal
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers.actions import RED, write_action_videos
from helpers.clip_backbones import write_clip_backbone
from helpers.interrupts import before_step
from helpers.training import arguments
from sce_fast.cli import main
from sce_fast.evaluate.detection import whole
from sce_fast.evaluate.detection.annotations import read_persons
from sce_fast.evaluate.detection.feature_files import load_person_features, save_person_features
from sce_fast.evaluate.detection.network import Detector
from sce_fast.export import ForeignNetwork
from sce_fast.tools.detection import detection
from sce_fast.tools.detection_files import DetectionFiles
from sce_fast.tools.detection_source import PersonFeatureOptions
from sce_fast.train.stop import Stopped

START = 899.5  # key frames lie in the middle of their seconds
RATES = (0.5, 2.0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Return a folder of films, a backbone, and kept/, the features that a short evaluation in first/ has left."""
    root = write_action_videos(tmp_path_factory.mktemp("films"), videos=3, told=False)
    write_clip_backbone(root / "backbone.safetensors")
    evaluate(root, root / "first", crop="centre", features=root / "kept")
    return root


def evaluate(films, out, *, run="backbone.safetensors", videos="videos", files=None, **more):
    kept = {name: more.pop(name) for name in list(more) if name.endswith("features")}
    settings = {
        "epochs": 4, "batch_size": 3, "scaling": "none", "learning_rates": RATES, "dropout": 0.25, "freeze": True,
        "first_second": None if run is None else START, "device": "cpu", "loader_threads": 1, **more,
    }  # fmt: skip
    return detection(
        None if run is None else films / run,
        videos=None if videos is None else films / videos,
        files=files or DetectionFiles(data=films),
        kept=PersonFeatureOptions(**kept),
        out=out,
        **arguments(settings),
    )


def kept_file(films, name):
    (path,) = (films / "kept").glob(f"persons_{name}_*.safetensors")
    return path


def feature_files(films):
    return {f"{name}_features": kept_file(films, name) for name in ("train", "test")}


def test_features_are_kept_and_used_again(films, tmp_path, monkeypatch):
    assert len(list((films / "kept").iterdir())) == 2
    file = load_person_features(kept_file(films, "test"))
    assert (len(file.features), file.videos[0], file.seconds[0]) == (18, "film0", 900)
    assert file.made_by["view"]["sampling"]["frames"] == 2
    monkeypatch.setattr(Detector, "features", None)  # nothing is computed anew
    again = evaluate(films, tmp_path / "out", crop="centre", features=films / "kept")
    first = json.loads((films / "first" / "results.json").read_text())
    assert again.rows == first["rows"]
    assert {"results.json", "table.txt", "actions.png", "map.png", "detections.csv"} <= set(os.listdir(films / "first"))
    assert 0 < again.rows[0]["mean_average_precision"] < 1
    for name in ("classifier.safetensors", "detections.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (films / "first" / name).read_bytes(), name


@pytest.mark.slow
def test_feature_files_stand_for_videos_with_and_without_the_run(films, tmp_path, capsys):
    expected = json.loads((films / "first" / "results.json").read_text())["rows"]
    for name, run in (("with", "backbone.safetensors"), ("without", None)):
        out = tmp_path / name
        assert evaluate(films, out, run=run, videos=None, **feature_files(films)).rows == expected
        for file in ("classifier.safetensors", "detections.csv"):
            assert (out / file).read_bytes() == (films / "first" / file).read_bytes(), file
    options = [f"--{name.replace('_', '-')}={path}" for name, path in feature_files(films).items()]
    words = ["--data", films, *options, "--epochs", 4, "--batch-size", 3, "--scaling", "none", "--dropout", 0.25]
    words += ["--learning-rates", *RATES, "--out", tmp_path / "words", "--device", "cpu"]
    main(["evaluate", "detection", *map(str, words)])
    assert (tmp_path / "words" / "results.json").read_text() == (tmp_path / "without" / "results.json").read_text()
    assert "18 persons in 9 key frames" in capsys.readouterr().out


@pytest.mark.slow
def test_one_feature_file_stands_for_its_set(films, tmp_path):
    """The test file serves random crops, too; the train file comes with test videos."""
    plain = evaluate(films, tmp_path / "plain", features=tmp_path / "kept")
    assert [path.name[:12] for path in (tmp_path / "kept").iterdir()] == ["persons_test"]
    test = evaluate(films, tmp_path / "test", test_features=kept_file(films, "test"))
    assert test.rows == plain.rows
    expected = json.loads((films / "first" / "results.json").read_text())["rows"]
    train = {"train_features": kept_file(films, "train"), "features": tmp_path / "kept"}
    assert evaluate(films, tmp_path / "train", **train).rows == expected


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch_size(films, tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "TEST_CLIPS", 1)
    single = evaluate(films, tmp_path / "out", crop="centre", features=tmp_path / "kept", precision="float64")
    monkeypatch.setattr(whole, "TEST_CLIPS", 5)
    several = evaluate(films, tmp_path / "several", crop="centre", features=tmp_path / "again", precision="float64")
    for row, other in zip(single.rows, several.rows, strict=True):
        assert row["average_precisions"] == pytest.approx(other["average_precisions"], abs=1e-12)
    for path in (tmp_path / "kept").iterdir():
        found, other = (load_person_features(folder / path.name) for folder in (path.parent, tmp_path / "again"))
        torch.testing.assert_close(found.features, other.features, rtol=0, atol=1e-12)
        alike = load_person_features(kept_file(films, "test")).features.double()
        torch.testing.assert_close(found.features, alike, rtol=1e-4, atol=1e-5)  # train and test hold the same persons


@pytest.mark.slow
@pytest.mark.parametrize("source", ["videos", "files"])
def test_a_stopped_evaluation_on_features_resumes_with_the_same_bits(films, tmp_path, source):
    more = {"crop": "centre", "features": films / "kept", "evaluate_every": 1}
    if source == "files":
        more = {"run": None, "videos": None, "evaluate_every": 1, **feature_files(films)}
    whole_result = evaluate(films, tmp_path / "whole", **more)
    with before_step(5, partial(signal.raise_signal, signal.SIGTERM)), pytest.raises(Stopped):
        evaluate(films, tmp_path / "broken", **more)
    assert evaluate(films, tmp_path / "broken", resume=True, **more) == whole_result
    for name in ("classifier.safetensors", "detections.csv", "results.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_a_resume_notices_other_features_and_other_videos(films, tmp_path):
    files = feature_files(films)
    evaluate(films, tmp_path / "out", run=None, videos=None, **files)
    path = files["test_features"]
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({**tensors, "features": tensors["features"] + 1}, tmp_path / "other.safetensors", metadata=metadata)
    other = {**files, "test_features": tmp_path / "other.safetensors"}
    with pytest.raises(ValueError, match=r"other settings.*\n +test\.features\.digest: "):
        evaluate(films, tmp_path / "out", run=None, videos=None, resume=True, **other)

    shutil.copytree(films / "videos", tmp_path / "videos")
    more = {"videos": tmp_path / "videos", "crop": "centre", "features": tmp_path / "kept"}
    evaluate(films, tmp_path / "clips", **more)
    with (tmp_path / "videos" / "film2.mp4").open("ab") as film:
        film.write(bytes(100))
    with pytest.raises(ValueError, match=r"other settings.*\n +test\.contents: .*\n +train\.contents: "):
        evaluate(films, tmp_path / "clips", resume=True, **more)
    assert len(list((tmp_path / "kept").iterdir())) == 2  # refused before the features of the changed film are computed


def test_files_of_another_backbone_or_of_other_boxes_are_refused(films, tmp_path):
    files, out = feature_files(films), tmp_path / "out"
    with pytest.raises(
        ValueError,
        match=r"does not hold features of .*backbone\.safetensors with these options:\n  view\.crop: 32 in",
    ):
        evaluate(films, out, videos=None, resize=48, **files)
    with pytest.raises(ValueError, match=r"\n  start: 899\.5 in the file, 899\.4 expected"):
        evaluate(films, out, videos=None, **{**files, "first_second": 899.4})
    with pytest.raises(ValueError, match=r"\n  precision: 'float32' in the file, 'float64' expected"):
        evaluate(films, out, videos=None, precision="float64", **files)
    rows = (films / "ava_val_v2.2.csv").read_text()
    (tmp_path / "moved.csv").write_text(rows.replace("film1,0901,0.05", "film1,0901,0.06"))
    moved = DetectionFiles(data=films, test=tmp_path / "moved.csv")
    with pytest.raises(
        ValueError,
        match=r"lacks 1 of the 18 test boxes, such as 0\.06, 0\.1, 0\.4, 0\.9 at second 901 of film1; expected",
    ):
        evaluate(films, out, run=None, videos=None, files=moved, **files)
    with pytest.raises(
        ValueError, match="is not a feature file of sce-fast evaluate detection: it lacks boxes, features"
    ):
        evaluate(films, out, run=None, videos=None, **{**files, "test_features": films / "backbone.safetensors"})
    assert not out.exists()


def test_options_that_do_not_fit_features_are_named(films, tmp_path):
    files, out = feature_files(films), tmp_path / "out"
    for more in ({"crop": "centre"}, {"features": tmp_path}, {"test_features": files["test_features"]}):
        (name,) = more
        with pytest.raises(ValueError, match=f"{name}=.*: expected --freeze too"):
            evaluate(films, out, freeze=False, learning_rates=(0.5,), **more)
    with pytest.raises(ValueError, match="crop='scaled': expected centre, as features do not change"):
        evaluate(films, out, crop="scaled", **files)
    with pytest.raises(
        ValueError, match=r"size=32, flip=0\.5: expected none of them, since train clips are whole frames"
    ):
        evaluate(films, out, crop="centre", size=32, flip=0.5)
    with pytest.raises(ValueError, match=r"resize=48, frames=4: expected none of them, since without a run"):
        evaluate(films, out, run=None, videos=None, frames=4, resize=48, **files)
    with pytest.raises(ValueError, match="expected both, or --train-features and --test-features"):
        evaluate(films, out, videos=None, test_features=files["test_features"])
    with pytest.raises(FileNotFoundError, match=r"test_features=.*nothing: no such file"):
        evaluate(films, out, **{**files, "test_features": tmp_path / "nothing"})


def test_options_on_which_nothing_depends_are_named(films, tmp_path):
    """Each was accepted without an effect."""
    files, out = feature_files(films), tmp_path / "out"
    of_files = {"run": None, "videos": None, **files}
    frozen, both, alone = "the backbone is frozen", "persons are read from feature files", "without a run, persons are"
    foreign = ForeignNetwork(backbone="r3d50", mean=(0.0, 0.0, 0.0))
    for more, names, why in (
        ({**of_files, "foreign": foreign}, r"backbone=r3d50, mean=\(0\.0, 0\.0, 0\.0\)", alone),
        ({**of_files, "first_second": 0.0}, r"first_second=0\.0", alone),
        ({**of_files, "backbone_learning_rate": 0.1}, r"backbone_learning_rate=0\.1", frozen),
        ({**of_files, "batch_norm": "local"}, "batch_norm=local", frozen),
        ({"backbone_learning_rate": 0.1, "batch_norm": "sync"}, "backbone_learning_rate=.*, batch_norm=sync", frozen),
        ({**files, "videos": "nonexistent"}, "videos=.*nonexistent", both),
        ({**files, "videos": None, "features": "nonex"}, "features=nonex", "no features are computed beside"),
        ({"test_features": files["test_features"], "features": "nonex"}, "features=nonex", "no features are computed"),
    ):
        with pytest.raises(ValueError, match=f"^{names}: expected none of them, since {why}"):
            evaluate(films, out, **more)
    assert not out.exists()


def test_the_folder_for_results_is_missed_before_a_file_is_read(films, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"")
    broken = {f"{name}_features": tmp_path / "broken.safetensors" for name in ("train", "test")}
    with pytest.raises(ValueError, match="out=None: expected a folder for the results, as feature files have none"):
        evaluate(films, None, run=None, videos=None, batch_size=10**6, **broken)


def test_feature_files_that_do_not_fit_the_options_or_each_other_are_refused(films, tmp_path):
    files, out = feature_files(films), tmp_path / "out"
    with pytest.raises(ValueError, match=r"these options:\n  precision: 'float32' in the file, 'float64' expected"):
        evaluate(films, out, run=None, videos=None, precision="float64", **files)
    file = load_person_features(files["test_features"])
    narrow = {**files, "test_features": tmp_path / "narrow.safetensors"}
    persons = read_persons([films / "ava_val_v2.2.csv"], RED)
    save_person_features(narrow["test_features"], file.features[:, :3], persons, file.made_by)
    for run in (None, "backbone.safetensors"):
        with pytest.raises(
            ValueError, match=r"narrow\.safetensors does not hold .*:\n  numbers per box: 3 in the file, \d"
        ):
            evaluate(films, out, run=run, videos=None, **narrow)
    assert not out.exists()
