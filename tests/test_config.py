"""Configs as JSON. Settings that are refused are in train/test_train.py."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig, from_json, to_json
from sce_fast.train import train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.folder import open_run, read_config


@pytest.mark.parametrize("folders", [(None, None), (Path("train"), Path("test"))])
def test_every_field_survives_json(tmp_path, folders):
    config = small_config(tmp_path / "images", tmp_path / "run")
    config = dataclasses.replace(config, evaluation=EvaluationConfig(train=folders[0], test=folders[1]))
    again = from_json(json.loads(json.dumps(to_json(config))))
    assert again == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": 3}, "LossConfig: unknown or missing entries 3"),
        ({"epoch": 3}, r"TrainConfig: unknown or missing entries \['epoch'\]"),
        ({"evaluation": {"every": 3}}, r"EvaluationConfig: unknown or missing entries \['crop', 'neighbours', "),
    ],
)
def test_wrong_entries_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        from_json({**to_json(small_config(tmp_path, tmp_path)), **change})


def test_a_run_of_an_earlier_version_is_read_and_resumed(photo_folder, tmp_path):
    """Its config names the queue's size "loss.queue" and has no wandb."""
    config = small_config(photo_folder, tmp_path / "run", epochs=1)
    train(config)
    earlier = to_json(config)
    earlier["loss"]["queue"] = earlier["loss"].pop("queue_size")
    del earlier["wandb"]
    assert from_json(earlier) == config
    (config.out / "config.json").write_text(json.dumps(earlier))
    assert read_config(config.out) == config
    assert open_run(dataclasses.replace(config, resume=True)) == checkpoints(config.out / "checkpoints")[-1]
    with pytest.raises(ValueError, match=r"(?s)another config.*loss.queue_size: 40 then, 41 now$"):
        open_run(dataclasses.replace(config, resume=True, loss=dataclasses.replace(config.loss, queue_size=41)))
    earlier["loss"]["queue_size"] = 40
    with pytest.raises(ValueError, match=r"LossConfig: unknown or missing entries \['queue'\]"):
        from_json(earlier)
