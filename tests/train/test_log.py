"""What a run tells: lines where there is no terminal, events for programs, curves for TensorBoard."""

import dataclasses
import shutil
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.runs import small_config
from sce_fast.train import log, train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.log import RunLog, read_log
from sce_fast.util.terminal import progress_bar


def test_plain_lines_keep_their_interval_and_tell_of_loss_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(log, "PLAIN_LINE_SECONDS", 0.2)
    started = time.monotonic()
    with progress_bar(60, "Training") as bar:
        for step in range(60):
            time.sleep(0.02)
            bar.set_postfix(loss=f"{step}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Training: step 0/60 [00:00<?]"
    assert lines[-1].startswith("Training: step 60/60 [00:01<00:00, loss=59")
    assert 4 <= len(lines) <= (time.monotonic() - started) / 0.2 + 2


def test_a_silent_bar_says_nothing(capsys):
    with progress_bar(3, "Training", silent=True) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_resumed_log_has_no_line_twice(tmp_path):
    first = RunLog(tmp_path)
    for step in range(1, 5):
        first.write("train", step, loss=float(step))
    first.write("knn", 2, top1=0.5)
    first.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # as a kill leaves it
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
