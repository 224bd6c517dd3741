"""The command evaluate detection on constructed features, whose mean average precision is known."""

import pytest
import torch

from helpers.actions import BLUE, RED
from helpers.training import arguments
from sce_fast.evaluate.detection.annotations import read_persons
from sce_fast.evaluate.detection.feature_files import save_person_features
from sce_fast.tools.detection import detection
from sce_fast.tools.detection_files import DetectionFiles
from sce_fast.tools.detection_source import PersonFeatureOptions

ACTIONS = f'item {{\n  name: "be blue"\n  id: {BLUE}\n}}\nitem {{\n  name: "be red"\n  id: {RED}\n}}\n'
SETTINGS = {"epochs": 20, "batch_size": 2, "scaling": "none", "learning_rates": (1.0,), "dropout": 0.0, "device": "cpu"}
MADE_BY = {"weights": "abc", "precision": "float32"}


def write_set(folder, name, videos, actions):
    """Write the annotations of persons, two in a key frame, and return the persons in this order."""
    rows = []
    for person, done in enumerate(actions):
        frame, place = divmod(person, 2)
        box = f"{videos}{frame // 4},{900 + frame % 4},0.{place},0.1,0.{place + 4},0.9"
        rows += [f"{box},{action},{person}\n" for action in done] or [f"{box},,{person}\n"]
    path = folder / f"{name}.csv"
    path.write_text("".join(rows))
    return read_persons([path], RED)


def evaluate(folder, train, test, *, test_videos="b"):
    """Return the row of an evaluation of persons, each of whom is a pair of actions and features."""
    (folder / "actions.pbtxt").write_text(ACTIONS)
    for name, videos, some in (("train", "a", train), ("test", test_videos, test)):
        persons = write_set(folder, name, videos, [actions for actions, _ in some])
        features = torch.tensor([features for _, features in some], dtype=torch.float32)
        save_person_features(folder / f"{name}.safetensors", features, persons, MADE_BY)
    result = detection(
        files=DetectionFiles(actions=folder / "actions.pbtxt", train=folder / "train.csv", test=folder / "test.csv"),
        kept=PersonFeatureOptions(**{f"{name}_features": folder / f"{name}.safetensors" for name in ("train", "test")}),
        out=folder / "out",
        **arguments(SETTINGS),
    )
    (row,) = result.rows
    return row


def test_features_that_tell_the_action_are_learned(tmp_path, capsys):
    """One feature for each action, in videos that nobody has trained on."""
    persons = [((BLUE,), [1, 0]), ((RED,), [0, 1]), ((BLUE,), [1, 0]), ((), [0, 0]), ((RED, BLUE), [1, 1])] * 4
    row = evaluate(tmp_path, persons, persons[3:])
    assert row["average_precisions"] == {"be blue": 1.0, "be red": 1.0}
    assert row["mean_average_precision"] == 1.0
    assert "are in train too" not in capsys.readouterr().err


def test_features_that_tell_nothing_give_the_share_of_each_action(tmp_path, capsys):
    persons = [((BLUE,), [0, 0])] * 3 + [((RED,), [0, 0])] + [((BLUE,), [0, 0]), ((RED,), [0, 0])] * 2
    row = evaluate(tmp_path, persons, persons, test_videos="a")
    assert row["average_precisions"] == pytest.approx({"be blue": 5 / 8, "be red": 3 / 8})
    assert row["mean_average_precision"] == pytest.approx(0.5)
    assert "Warning: 1 of 1 videos in test are in train too, such as a0, so the mAP" in capsys.readouterr().err


def test_a_ranking_worked_by_hand(tmp_path):
    """The only feature is positive for blue and negative for red, so it ranks the test persons for both actions."""
    train = [((BLUE,), [1]), ((RED,), [-1])] * 4
    test = [((BLUE,), [0.4]), ((RED,), [0.3]), ((BLUE,), [0.2]), ((), [0.1])]
    row = evaluate(tmp_path, train, test)
    # Blue ranks 0.4, 0.3, 0.2, 0.1 and is right at places 1 and 3. Red ranks the other way and is right at place 3.
    assert row["average_precisions"] == pytest.approx({"be blue": (1 / 1 + 2 / 3) / 2, "be red": 1 / 3})
    assert row["mean_average_precision"] == pytest.approx(7 / 12)
