"""The command evaluate detection, from films to its results."""

import dataclasses
import json
import os
import re
import signal
from functools import partial

import pytest

from helpers.actions import BLUE, BOXES, RED, write_action_videos
from helpers.clip_backbones import write_clip_backbone
from helpers.images import write_png
from helpers.interrupts import before_step
from helpers.training import arguments
from helpers.videos import numbered_frame
from sce_fast.cli import main
from sce_fast.evaluate.detection import run as detection_run
from sce_fast.evaluate.detection import whole
from sce_fast.export import ForeignNetwork
from sce_fast.tools.detection import detection
from sce_fast.tools.detection_files import DetectionFiles, read_annotations
from sce_fast.tools.detection_source import PersonFeatureOptions
from sce_fast.train.stop import Stopped
from sce_fast.util.settings import changed

START = 899.5  # key frames lie in the middle of their seconds
SHORT = {"epochs": 12, "batch_size": 6, "scaling": "none", "learning_rates": (0.1,), "dropout": 0.25}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = write_action_videos(tmp_path_factory.mktemp("films"))
    write_clip_backbone(root / "backbone.safetensors")
    return root


def evaluate(films, out, *, files=None, **more):
    settings = {**SHORT, "first_second": START, "device": "cpu", "loader_threads": 1, **more}
    files = files or DetectionFiles(data=films)
    return detection(
        films / "backbone.safetensors", videos=films / "videos", files=files, out=out, **arguments(settings)
    )


@pytest.mark.slow
def test_actions_that_colours_tell_are_learned_and_detections_evaluate_alike(films, tmp_path, capsys):
    result = evaluate(films, tmp_path / "out")
    (row,) = result.rows
    assert row["mean_average_precision"] == 1.0
    assert row["average_precisions"] == {"be blue": 1.0, "be red": 1.0}
    assert [at["epoch"] for at in row["history"]] == [4, 8, 12]
    assert "annotated ones" in result.notes[0]
    files = {"actions.png", "classifier.safetensors", "detections.csv", "log.jsonl", "map.png", "results.json"}
    assert files | {"settings.json", "table.txt", "checkpoints"} == set(os.listdir(tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == result.rows
    assert "24 persons in 12 key frames" in capsys.readouterr().out

    again = detection(files=DetectionFiles(data=films), detections=tmp_path / "out" / "detections.csv")
    assert again.rows[0]["average_precisions"] == row["average_precisions"]
    with pytest.raises(ValueError, match="holds results already; pass --resume"):
        evaluate(films, tmp_path / "out")


@pytest.mark.slow
def test_a_stopped_evaluation_resumes_with_the_same_bits(films, tmp_path):
    short = {"epochs": 3, "evaluate_every": 1}
    whole = evaluate(films, tmp_path / "whole", **short)
    with before_step(3, partial(signal.raise_signal, signal.SIGTERM)), pytest.raises(Stopped):
        evaluate(films, tmp_path / "broken", **short)
    with pytest.raises(ValueError, match="holds an evaluation with other settings"):
        evaluate(films, tmp_path / "broken", **short, first_second=899.6, resume=True)
    assert evaluate(films, tmp_path / "broken", **short, resume=True) == whole
    for name in ("classifier.safetensors", "detections.csv", "results.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_persons_that_are_not_detected_count_as_missed(films, tmp_path):
    rows = [row.split(",") for row in (films / "ava_val_v2.2.csv").read_text().splitlines()]
    scored = [",".join([*row[:6], "", "0.5" if row[7] == "0" else "0.95"]) for row in rows]
    (tmp_path / "boxes.csv").write_text("\n".join(scored) + "\n")
    result = evaluate(films, tmp_path / "out", files=DetectionFiles(data=films, test_boxes=tmp_path / "boxes.csv"))
    assert not any("annotated ones" in note for note in result.notes)
    # All persons on the right are found before any mistake: precision 1 up to their share of the action's persons.
    for action, name in ((BLUE, "be blue"), (RED, "be red")):
        persons = [row[7] for row in rows if row[6] == str(action)]
        assert result.rows[0]["average_precisions"][name] == pytest.approx(persons.count("1") / len(persons))
    found = {row.split(",")[2] for row in (tmp_path / "out" / "detections.csv").read_text().splitlines()}
    assert found == {str(BOXES[1][0])}


@pytest.mark.slow
def test_actions_that_nothing_tells_are_chance_on_any_batch_size(tmp_path, monkeypatch):
    root = write_action_videos(tmp_path, videos=8, told=False)
    write_clip_backbone(root / "backbone.safetensors")
    for part, films in (("train", "0123"), ("val", "4567")):
        path = root / f"ava_{part}_v2.2.csv"
        path.write_text("".join(row for row in path.open().readlines() if row[4] in films))
    more = {"freeze": True, "learning_rates": (0.1, 1.0), "epochs": 2}
    result = evaluate(root, tmp_path / "whole", **more)
    assert [row["learning_rate"] for row in result.rows] == [0.1, 1.0]
    assert all(0.35 < row["mean_average_precision"] < 0.7 for row in result.rows)
    monkeypatch.setattr(whole, "TEST_CLIPS", 1)
    single = evaluate(root, tmp_path / "single", **more)
    for row, other in zip(result.rows, single.rows, strict=True):
        assert row["average_precisions"] == pytest.approx(other["average_precisions"], abs=1e-12)


@pytest.mark.slow
def test_folders_of_frames_stand_for_videos(films, tmp_path):
    frames = tmp_path / "frames" / "film0"
    for number in range(90):
        write_png(frames / f"{number + 1:06d}.png", numbered_frame(number, 48, 64))
    row = "film0,0901,0.1,0.1,0.6,0.9"
    for part in ("train", "val"):
        (tmp_path / f"ava_{part}_v2.2.csv").write_text("".join(f"{row},{action},0\n" for action in (1, 3)))
    (tmp_path / "ava_val_excluded_timestamps_v2.2.csv").write_text("film0,1200\n")
    files = DetectionFiles(data=tmp_path, actions=films / "ava_action_list_v2.2_for_activitynet_2019.pbtxt")
    settings = {**SHORT, "epochs": 1, "batch_size": 1, "device": "cpu", "loader_threads": 1, "out": tmp_path / "out"}
    result = detection(films / "backbone.safetensors", videos=tmp_path / "frames", files=files, **arguments(settings))
    assert result.rows[0]["mean_average_precision"] == 1.0  # the only person does both


def test_a_file_of_detections_needs_no_backbone(films, tmp_path, capsys):
    rows = (films / "ava_val_v2.2.csv").read_text().splitlines()
    (tmp_path / "found.csv").write_text("".join(f"{row.rpartition(',')[0]},0.5\n" for row in rows))
    main(["evaluate", "detection", "--data", str(films), "--detections", str(tmp_path / "found.csv")])
    out = capsys.readouterr().out
    assert re.search(r"mean average precision +actions +detections\n1\.0000 +2 +24", out)
    (tmp_path / "excluded.csv").write_text("film0,900\n")
    main(
        ["evaluate", "detection", "--data", str(films), "--detections", str(tmp_path / "found.csv"),
         "--test-excluded", str(tmp_path / "excluded.csv")]
    )  # fmt: skip
    assert "22 persons in 11 key frames" in capsys.readouterr().out


def test_files_are_found_as_they_are_unpacked(films, tmp_path):
    """AVA's own lie in one folder, SlowFast's boxes two folders deep."""
    inside = tmp_path / "annotations" / "person_box_67091280_iou90"
    inside.mkdir(parents=True)
    for path in films.glob("ava_*"):
        (inside.parent / path.name).write_bytes(path.read_bytes())
    (inside / "ava_detection_val_boxes_and_labels.csv").write_text("film0,0901,0.1,0.1,0.6,0.9,,0.95\n")
    found = DetectionFiles(data=tmp_path).found()
    assert found["test_boxes"].parent == inside
    told = read_annotations(DetectionFiles(data=tmp_path)).describe()
    assert f"--test-boxes {found['test_boxes']}" in told
    assert told.endswith("; none for --train-excluded, --test-excluded, --train-boxes")


def test_missing_files_and_options_are_named(films, tmp_path):
    with pytest.raises(ValueError, match=r"--train \(or ava_train_v2\.2\.csv in --data\), --test .*, --actions"):
        detection(tmp_path / "run", videos=tmp_path, files=DetectionFiles())
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv: no such file"):
        detection(tmp_path / "run", videos=tmp_path, files=DetectionFiles(data=films, test=tmp_path / "nothing.csv"))
    with pytest.raises(ValueError, match="run=None, videos=None: expected both, or --train-features and"):
        detection(files=DetectionFiles(data=films))


@pytest.mark.parametrize(
    "given",
    [
        {"videos": "films", "first_second": 0.0},
        {"freeze": True, "crop": "centre", "batch_norm": "local", "backbone_learning_rate": 0.1},
        {"kept": PersonFeatureOptions(train_features="a.safetensors", features="kept")},
        {"epochs": 3, "precision": "float64", "learning_rates": (0.1,), "dropout": 0.0},
        {
            "size": 32,
            "resize": 40,
            "shorter_side": (40, 50),
            "flip": 0.0,
            "frames": 4,
            "seconds": 1.0,
            "frame_rate": 3.0,
        },
        {"foreign": ForeignNetwork(backbone="r3d50", width=32)},
    ],
)
def test_options_that_a_file_of_detections_does_not_need_are_named(films, given):
    with pytest.raises(ValueError, match=r"is evaluated alone \(--detections\)$") as error:
        detection("run", files=DetectionFiles(data=films), detections=films / "ava_val_v2.2.csv", **arguments(given))
    assert str(error.value).startswith("run=run, ")
    for name, value in given.items():
        fields = changed(value) if dataclasses.is_dataclass(value) else {name: value}
        for field, one in fields.items():
            assert f"{field}={one}" in str(error.value)


def test_published_settings_shrink_with_the_epochs():
    assert detection_run.of_epochs(32) == detection_run.SETTINGS
    assert detection_run.SETTINGS.peak(1.2) == pytest.approx(0.3)
    few = detection_run.of_epochs(2)
    assert (few.milestones, few.warmup_epochs) == ((1,), pytest.approx(5.3 / 16))
