"""Evaluations that compute features: what is checked before, and what a stopped or finished one does not do again."""

import os
import shutil
import signal

import pytest

from helpers import image_sets
from helpers.actions import write_action_videos
from helpers.backbones import write_backbone
from helpers.clip_backbones import write_clip_backbone
from helpers.training import arguments
from sce_fast.evaluate.detection import store as person_store
from sce_fast.evaluate.detection import whole
from sce_fast.evaluate.detection.network import Detector
from sce_fast.evaluate.detection.store import PersonFeatureStore
from sce_fast.evaluate.store import FeatureStore
from sce_fast.tools.detection import detection
from sce_fast.tools.detection_files import DetectionFiles
from sce_fast.tools.detection_source import PersonFeatureOptions
from sce_fast.tools.evaluate import knn
from sce_fast.tools.linear import linear
from sce_fast.tools.retrieval import retrieval
from sce_fast.train.stop import Stopped


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = write_action_videos(tmp_path_factory.mktemp("films"), videos=3, told=False)
    write_clip_backbone(root / "backbone.safetensors")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    image_sets.class_folders(root, image_sets.coloured, images=6)
    write_backbone(root / "network.safetensors")
    return root


@pytest.fixture
def nothing_computed(monkeypatch):
    """Let the test fail if features are computed or read."""

    def fail(*_):
        raise AssertionError("features are asked for")

    return lambda: [monkeypatch.setattr(kind, "features", fail) for kind in (FeatureStore, PersonFeatureStore)]


def detect(films, out, **more):
    kept = PersonFeatureOptions(features=more.pop("features"))
    settings = {
        "epochs": 2, "batch_size": 3, "scaling": "none", "learning_rates": (0.5,), "freeze": True, "crop": "centre",
        "device": "cpu", "loader_threads": 1, **more,
    }  # fmt: skip
    files = DetectionFiles(data=films)
    return detection(
        films / "backbone.safetensors", videos=films / "videos", files=files, kept=kept, out=out, **arguments(settings)
    )


def stopped_at(monkeypatch, method, call):
    """Send a signal in the call with this number, from 1, of a method of the detector; return the calls."""
    calls, original = [], getattr(Detector, method)

    def counted(self, *inputs, **settings):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *inputs, **settings)

    monkeypatch.setattr(Detector, method, counted)
    return calls


@pytest.mark.slow
def test_detection_goes_on_with_the_parts_that_are_kept(films, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(whole, "TEST_CLIPS", 2)
    expected = detect(films, tmp_path / "whole", features=tmp_path / "kept")
    monkeypatch.setattr(person_store, "PART", {"videos": 4})
    with monkeypatch.context() as patched:
        stopped_at(patched, "features", 8)  # after all of train and the first part of test
        with pytest.raises(Stopped):
            detect(films, tmp_path / "broken", features=tmp_path / "parts")
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert [name.partition(".")[2] for name in names] == ["part1of3.safetensors", "safetensors"]
    assert "1 of 3 parts of the features of test are kept in" in capsys.readouterr().err
    with monkeypatch.context() as patched:
        calls = stopped_at(patched, "features", None)
        found = detect(films, tmp_path / "broken", features=tmp_path / "parts", resume=True)
    assert len(calls) == 3
    assert found == expected
    for path in [*(tmp_path / "kept").iterdir(), tmp_path / "whole" / "classifier.safetensors"]:
        other = tmp_path / ("parts" if path.parent.name == "kept" else "broken") / path.name
        assert other.read_bytes() == path.read_bytes(), path.name
    assert len(list((tmp_path / "parts").iterdir())) == 2


@pytest.mark.slow
def test_detection_checks_folder_and_batch_before_features(films, tmp_path, monkeypatch, nothing_computed):
    out, kept = tmp_path / "out", tmp_path / "kept"
    with monkeypatch.context() as patched:
        stopped_at(patched, "step", 3)
        with pytest.raises(Stopped):
            detect(films, out, features=kept)
    finished = detect(films, tmp_path / "finished", features=kept)
    shutil.rmtree(kept)
    (tmp_path / "file").touch()
    with monkeypatch.context() as patched:
        calls = stopped_at(patched, "features", None)
        with pytest.raises(ValueError, match=r"features=\S+file cannot be written \(File exists\); expected a folder"):
            detect(films, tmp_path / "new", features=tmp_path / "file")
        assert calls == []
    nothing_computed()
    with pytest.raises(ValueError, match="holds an evaluation that has begun; pass --resume to go on"):
        detect(films, out, features=kept)
    with pytest.raises(ValueError, match=r"other settings.*\n +learning_rates: \[0\.5\] then, \[1\.0\] now"):
        detect(films, out, features=kept, learning_rates=(1.0,), resume=True)
    with pytest.raises(ValueError, match="batch_size=10 is larger than the 9 train key frames"):
        detect(films, tmp_path / "new", features=kept, batch_size=10)
    assert detect(films, tmp_path / "finished", features=kept, resume=True) == finished


def evaluations(images):
    """Return name → evaluation of features of the images."""
    train, test = images / "train", images / "test"
    network, places = images / "network.safetensors", {"train": train, "test": test, "device": "cpu"}
    fitted = {"crop": "centre", "epochs": 1, "batch_size": 6, "learning_rates": (0.5,), "loader_threads": 1}
    return {
        "knn": lambda out, **more: knn(network, **places, neighbours=more.pop("k", (1,)), out=out, **more),
        "retrieval": lambda out, **more: retrieval(
            network, bank=train, queries=test, device="cpu", recall_at=more.pop("k", (1,)), out=out, **more
        ),
        "linear": lambda out, **more: linear(
            network, **arguments({**places, **fitted, "seed": more.pop("k", (1,))[0], **more}), out=out
        ),
    }


@pytest.mark.parametrize("name", ["knn", "retrieval", "linear"])
def test_settings_and_finished_results_need_no_features(images, tmp_path, name, nothing_computed):
    evaluate = evaluations(images)[name]
    found = evaluate(tmp_path / "out")
    nothing_computed()
    with pytest.raises(ValueError, match="holds results already; pass --resume"):
        evaluate(tmp_path / "out")
    with pytest.raises(ValueError, match="holds results with other settings"):
        evaluate(tmp_path / "out", k=(2,), resume=True)
    if name != "retrieval":  # whose picture shows the neighbours
        assert evaluate(tmp_path / "out", resume=True).rows == found.rows
    if name == "linear":
        with pytest.raises(ValueError, match="batch_size=600 is larger than the"):
            evaluate(tmp_path / "new", batch_size=600)
