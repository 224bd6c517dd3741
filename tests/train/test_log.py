"""The log of a run: events for programs, curves for TensorBoard."""

import dataclasses
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.runs import small_config
from sce_fast.train import train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.log import RunLog, read_log


def test_a_resumed_log_has_no_line_twice(tmp_path):
    first = RunLog(tmp_path)
    for step in range(1, 5):
        first.write("train", step, loss=float(step))
    first.write("knn", 2, top1=0.5)
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # as a kill may leave it
    again = RunLog(tmp_path, resumed_at=2)
    again.write("train", 3, loss=3.5)
    again.close()
    assert [(line["event"], line["step"]) for line in read_log(tmp_path / "log.jsonl")] == [
        ("train", 1), ("train", 2), ("train", 3),
    ]  # fmt: skip


@pytest.mark.parametrize("checkpoints_left", [0, 3])
def test_tensorboard_has_each_step_once_over_a_resume(photo_folder, tmp_path, checkpoints_left):
    config = small_config(photo_folder, tmp_path / "run", keep_checkpoints=9)
    train(config)
    for path in checkpoints(config.out / "checkpoints")[checkpoints_left:]:
        shutil.rmtree(path)
    train(dataclasses.replace(config, resume=True))
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    for event, name, steps in (("train", "loss", list(range(1, 10))), ("knn", "top1", [0, 6, 9])):
        lines = [line for line in read_log(config.out / "log.jsonl") if line["event"] == event]
        curve = events.Scalars(f"{event}/{name}")
        assert [point.step for point in curve] == [line["step"] for line in lines] == steps
        assert [point.value for point in curve] == pytest.approx([line[name] for line in lines], rel=1e-6)
