"""Curves in TensorBoard and Weights & Biases."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import types

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.runs import small_config
from sce_fast.config import EvaluationConfig
from sce_fast.train import Trainer, train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.curves import WandB
from sce_fast.train.log import RunLog, read_log


def lines_of(run, event):
    return [line for line in read_log(run / "log.jsonl") if line["event"] == event]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoints_left", [0, 3])
def test_tensorboard_has_each_step_once_over_a_resume(photo_folder, tmp_path, checkpoints_left):
    config = small_config(photo_folder, tmp_path / "run", keep_checkpoints=9)
    notes = config.out / "tensorboard" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("of the user")
    train(config)
    for path in checkpoints(config.out / "checkpoints")[checkpoints_left:]:
        shutil.rmtree(path)
    train(dataclasses.replace(config, resume=True))
    assert notes.read_text() == "of the user"
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    train_names = ("loss", "gradient_norm", "images_per_second", "data_wait_share", "seconds")
    curves = {"train": (train_names, list(range(1, 10))), "knn": (("top1",), [0, 6, 9])}
    for event, (names, steps) in curves.items():
        lines = lines_of(config.out, event)
        for name in names:
            curve = events.Scalars(f"{event}/{name}")
            assert [point.step for point in curve] == [line["step"] for line in lines] == steps
            assert [point.value for point in curve] == pytest.approx([line[name] for line in lines], rel=1e-6)
            assert [point.wall_time for point in curve] == [line["time"] for line in lines]


class FakeWandB(types.ModuleType):
    """Stands for the package: remembers its calls."""

    class Error(Exception):
        pass

    def __init__(self):
        super().__init__("wandb")
        self.runs, self.Settings, self.refuses, self.breaks_at = [], dict, False, None

    def init(self, **settings):
        if self.refuses:
            raise self.Error("no API key configured")
        run = types.SimpleNamespace(settings=settings, points=[], ends=[], axes=[])
        run.define_metric = lambda name, step_metric=None: run.axes.append((name, step_metric))
        run.finish = lambda exit_code: run.ends.append(exit_code)

        def log(point):
            if point["step"] == self.breaks_at:
                raise self.Error("broken pipe")
            run.points.append(point)

        run.log = log
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch):
    module = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def opened(folder, **settings):
    """Return a log that draws in wandb, as a run in this folder opens it."""
    resumed_at = settings.get("resumed_at")
    curves = WandB(folder, "photos", {"seed": 1}, resume=settings.get("resume", resumed_at is not None))
    return RunLog(folder, [curves], resumed_at=resumed_at)


def test_wandb_gets_the_log_and_a_resume_goes_on_in_the_same_run(tmp_path, wandb):
    log = opened(tmp_path)
    for step in range(1, 6):
        log.write("train", step, loss=1 / step, gradient_norm=None)
    log.write("knn", 5, top1=0.5)
    log.close(finished=False)
    log = opened(tmp_path, resumed_at=4)
    log.write("train", 5, loss=0.2, gradient_norm=2.0)
    log.close()
    first, second = wandb.runs
    assert first.settings["id"] == second.settings["id"]
    expected = {"project": "photos", "name": tmp_path.name, "dir": tmp_path, "resume": "allow", "config": {"seed": 1}}
    assert expected.items() <= first.settings.items()
    assert ("*", "step") in first.axes
    assert (first.ends, second.ends) == ([1], [0])
    assert first.points[0] == {"step": 1, "train/loss": 1.0}
    assert first.points[-1] == {"step": 5, "knn/top1": 0.5}
    assert [point["step"] for point in first.points] == [1, 2, 3, 4, 5, 5]
    assert second.points == [{"step": 5, "train/loss": 0.2, "train/gradient_norm": 2.0}]
    opened(tmp_path).close()
    assert wandb.runs[2].settings["id"] != first.settings["id"]


def test_wandb_turned_on_by_a_resume_gets_the_earlier_steps_too(tmp_path, wandb):
    log = RunLog(tmp_path)
    for step in range(1, 5):
        log.write("train", step, loss=1 / step)
    log.close()
    opened(tmp_path, resumed_at=3).close()
    assert [point["step"] for point in wandb.runs[0].points] == [1, 2, 3]


def test_a_run_killed_before_its_first_checkpoint_begins_again_in_the_same_wandb_run(tmp_path, wandb):
    opened(tmp_path).close()
    opened(tmp_path, resume=True).close()
    assert wandb.runs[0].settings["id"] == wandb.runs[1].settings["id"]


def test_wandb_that_breaks_does_not_end_the_log(tmp_path, wandb, capsys):
    wandb.breaks_at = 3
    log = opened(tmp_path)
    for step in range(1, 6):
        log.write("train", step, loss=1 / step)
    log.close()
    assert len(read_log(tmp_path / "log.jsonl")) == 5
    assert [point["step"] for point in wandb.runs[0].points] == [1, 2]
    assert capsys.readouterr().err.count("Warning: no more curves in Weights & Biases: broken pipe") == 1


def test_a_run_asks_for_wandb_and_says_what_helps_if_it_is_refused(photo_folder, tmp_path, wandb):
    wandb.refuses = True
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig(), wandb="photos")
    with pytest.raises(RuntimeError, match="wandb=photos: no API key configured; log in with wandb login, set WANDB"):
        Trainer(config)
    wandb.refuses = False
    trainer = Trainer(config)  # the folder still counts as new
    trainer.log.close()
    assert wandb.runs[0].settings["config"]["loss"]["queue_size"] == 40


@pytest.mark.parametrize("found", [None, types.ModuleType("wandb")])  # wandb leaves folders that can be imported
def test_wandb_that_is_not_installed_stops_before_the_run_folder_is_made(photo_folder, tmp_path, monkeypatch, found):
    monkeypatch.setitem(sys.modules, "wandb", found)
    with pytest.raises(ImportError, match="--wandb needs the package wandb: pip install wandb"):
        train(small_config(photo_folder, tmp_path / "run", wandb="photos"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed; a stand-in is tested")
def test_the_real_wandb_keeps_a_run_offline(photo_folder, tmp_path):
    """Two processes, the second of which resumes: both end, and their data have the same id."""
    words = [
        "train", "folder", "--data", photo_folder, "--out", tmp_path / "run", "--epochs", 1, "--batch-size", 8,
        "--views.sizes", 32, "--model.backbone", "resnet18", "--model.width", 8, "--model.projector-hidden", 16,
        "--model.dim", 8, "--model.predictor-hidden", 16, "--loss.queue-size", 40, "--optimizer.warmup-epochs", 0,
        "--device", "cpu", "--checkpoint-every", 1, "--no-pictures", "--resume", "--wandb", "photos",
    ]  # fmt: skip
    command = [sys.executable, "-c", "from sce_fast.cli import main; main()", *map(str, words)]
    for _ in range(2):
        subprocess.run(command, env={**os.environ, "WANDB_MODE": "offline"}, check=True, timeout=120)
        shutil.rmtree(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{(tmp_path / 'run' / 'wandb_id.txt').read_text().strip()}"}
