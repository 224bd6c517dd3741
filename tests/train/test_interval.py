"""What a log line says of the steps since the last one: means over steps and ranks, also after a resume."""

import dataclasses
import json
import math
import shutil
import time

import pytest
import torch

from helpers import ranks
from helpers.runs import assert_same_run, repeated, small_config
from sce_fast.config import EvaluationConfig, OptimizerConfig
from sce_fast.train import guard, train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.interval import Interval, Totals, means, of_rank, wait_share
from sce_fast.train.log import read_log
from sce_fast.train.step import TrainingStep

CPU = torch.device("cpu")
MEASURES = ("loss", "target_entropy", "positive_probability", "gradient_norm")


def added(*steps):
    interval = Interval()
    for measures in steps:
        interval.add({name: torch.tensor(value) for name, value in measures.items()})
    return interval


def test_means_leave_out_what_a_step_does_not_have():
    interval = added({"loss": 1.0, "norm": math.nan}, {"loss": 2.0, "norm": 7.0}, {"loss": 6.0, "norm": 9.0})
    assert means([interval.totals()]) == {"loss": 3.0, "norm": 8.0}
    assert means([added({"loss": 1.0, "norm": math.nan}).totals()]) == {"loss": 1.0, "norm": None}


def test_an_interval_goes_on_from_json_with_the_same_bits():
    steps = [{"loss": value} for value in torch.randn(9).tolist()]
    half = json.loads(json.dumps(dataclasses.asdict(added(*steps[:4]).totals())))
    interval = Interval(Totals(**half))
    for measures in steps[4:]:
        interval.add({"loss": torch.tensor(measures["loss"])})
    assert interval.totals() == added(*steps).totals()


def test_means_of_several_ranks_and_of_another_number_of_ranks():
    saved = [added({"loss": 1.0}, {"loss": 3.0}).totals(), added({"loss": 5.0}, {"loss": 7.0}).totals()]
    assert means(saved) == {"loss": 4.0}
    assert [of_rank(saved, rank, 2) for rank in range(2)] == saved
    assert means([of_rank(saved, rank, 3) for rank in range(3)]) == {"loss": 4.0}
    times = [Totals(seconds=4.0, data_seconds=1.0), Totals(seconds=4.0, data_seconds=3.0)]
    assert wait_share(times) == 0.5


CHANGES = {"evaluation": EvaluationConfig(), "keep_checkpoints": 9}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, photo_folder):
    """Return the folders of two equal runs of nine steps: one logs every step, one every fourth by a clock of its own.

    By this clock the first step takes 100 s, as if it compiled, and each other step 1 s.
    """
    folder, clock, original = tmp_path_factory.mktemp("runs"), [0.0], TrainingStep.__call__

    def step(self, parts, *, number, **settings):
        clock[0] += 1 if number else 100
        return original(self, parts, number=number, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        train(small_config(photo_folder, folder / "1", **CHANGES))
        patch.setattr(TrainingStep, "__call__", step)
        patch.setattr("sce_fast.train.trainer.time.perf_counter", lambda: clock[0])
        train(small_config(photo_folder, folder / "4", log_every=4, **CHANGES))
    return folder / "1", folder / "4"


def require_means(lines, each_step):
    """Compare lines of steps 1 to 4, 5 to 8, and 9 with those of single steps."""
    assert [line["step"] for line in lines] == [4, 8, 9]
    for line, steps in zip(lines, (each_step[:4], each_step[4:8], each_step[8:]), strict=True):
        for name in MEASURES:
            assert line[name] == sum(step[name] for step in steps) / len(steps), name
        assert line["learning_rate"] == steps[-1]["learning_rate"]


def test_a_line_is_the_mean_of_its_interval(runs):
    each_step, lines = (read_log(run / "log.jsonl") for run in runs)
    require_means(lines, each_step)
    assert json.loads((runs[1] / "summary.json").read_text())["final_loss"] == lines[-1]["loss"]
    assert all(0 <= line["data_wait_share"] <= 1 for line in each_step)
    assert each_step[0]["time"] <= each_step[-1]["time"] <= lines[-1]["time"] <= time.time()


def test_rates_are_those_of_the_interval(runs):
    lines = read_log(runs[1] / "log.jsonl")
    assert [line["images_per_second"] for line in lines] == [round(8 * 4 / 103, 2), 8.0, 8.0]
    assert [line["seconds"] for line in lines] == [103, 107, 108]


def resumed(run, step, folder, photo_folder, change=lambda state: None):
    """Return the log of a copy of a run that was resumed from the checkpoint of this step."""
    config = small_config(photo_folder, folder, log_every=4, resume=True, **CHANGES)
    shutil.copytree(run, folder)
    for path in checkpoints(folder / "checkpoints"):
        if int(path.name.removeprefix("step_")) > step:
            shutil.rmtree(path)
    path = checkpoints(folder / "checkpoints")[-1] / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    train(config)
    return read_log(folder / "log.jsonl")


@pytest.mark.parametrize("step", [6, pytest.param(2, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_resumed_within_an_interval_logs_the_same_means(runs, photo_folder, tmp_path, step):
    lines = resumed(runs[1], step, tmp_path / "run", photo_folder)
    require_means(lines, read_log(runs[0] / "log.jsonl"))
    assert_same_run(tmp_path / "run", runs[1])


def test_a_checkpoint_of_an_earlier_version_begins_a_new_interval(runs, photo_folder, tmp_path):
    lines = resumed(runs[1], 6, tmp_path / "run", photo_folder, lambda state: state.pop("interval"))
    each_step = read_log(runs[0] / "log.jsonl")
    assert (lines[1]["step"], lines[1]["loss"]) == (8, sum(step["loss"] for step in each_step[6:8]) / 2)


def measured(photo_folder, tmp_path, **changes):
    """Return the gradient norm that a first step measures, and the norm of the gradients that it leaves."""
    torch.manual_seed(0)
    step = TrainingStep(small_config(photo_folder, tmp_path / "run", **changes), CPU)
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]
    parts = [[view[i : i + step.part_size] for view in views] for i in range(0, 8, step.part_size)]
    norm = step(parts, number=0, learning_rate=0.1, momentum=0.9)["gradient_norm"].item()
    return norm, torch.cat([p.grad.flatten() for p in step.parameters]).norm().item()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_gradient_norm_is_that_of_the_whole_gradient_before_clipping(photo_folder, tmp_path, accumulation):
    norm, left = measured(photo_folder, tmp_path, accumulation=accumulation)
    assert norm == pytest.approx(left, rel=1e-5)
    clipping = OptimizerConfig(clip_norm=0.01, warmup_epochs=1)
    clipped, left = measured(photo_folder, tmp_path, accumulation=accumulation, optimizer=clipping)
    assert clipped == norm
    assert left == pytest.approx(0.01, rel=1e-3)


def test_the_gradient_norm_is_free_of_the_loss_scale(photo_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "FIRST_SCALE", 64.0)  # the usual one overflows in the first step
    (scaled, left), (plain, _) = (measured(photo_folder, tmp_path, precision=p) for p in ("float16", "float32"))
    assert scaled == pytest.approx(left, rel=1e-5)
    assert scaled == pytest.approx(plain, rel=0.1)


@pytest.mark.slow
def test_a_step_that_float16_skips_does_not_count_for_the_gradient_norm(photo_folder, tmp_path, monkeypatch):
    original, check, measured = TrainingStep.__call__, guard.Guard.check, []

    def step(self, parts, **settings):
        measured.append(original(self, parts, **settings))
        return measured[-1]

    def overflow(self, gradients, step):
        if step in (1, 2):
            gradients[0][0] = float("inf")
        return check(self, gradients, step)

    monkeypatch.setattr(TrainingStep, "__call__", step)
    monkeypatch.setattr(guard.Guard, "check", overflow)
    monkeypatch.setattr(guard, "FIRST_SCALE", 64.0)
    config = small_config(photo_folder, tmp_path / "run", epochs=1, precision="float16", log_every=2)
    train(dataclasses.replace(config, evaluation=EvaluationConfig()))
    norms, losses = ([measures[name].item() for measures in measured] for name in ("gradient_norm", "loss"))
    assert [math.isnan(norm) for norm in norms] == [False, True, True]
    lines = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["gradient_norm"] for line in lines] == [norms[0], None]
    assert lines[0]["loss"] == (losses[0] + losses[1]) / 2


@pytest.mark.slow
def test_two_ranks_log_their_mean_also_if_resumed_within_an_interval(photo_folder, tmp_path):
    changes = dict(log_every=4, accumulation=2, loader_threads=1, keep_checkpoints=9, evaluation=EvaluationConfig())
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    ranks.run(train, whole, ranks=2)
    ranks.run(train, dataclasses.replace(whole, out=tmp_path / "each", log_every=1), ranks=2)
    lines, each = repeated(whole.out / "log.jsonl"), repeated(tmp_path / "each" / "log.jsonl")
    for name in MEASURES:
        assert lines[1][name] == pytest.approx(sum(step[name] for step in each[4:8]) / 4, rel=1e-12), name
    part = dataclasses.replace(whole, out=tmp_path / "part", resume=True)
    shutil.copytree(whole.out, part.out)
    for path in checkpoints(part.out / "checkpoints")[3:]:
        shutil.rmtree(path)
    saved = json.loads((checkpoints(part.out / "checkpoints")[-1] / "state.json").read_text())["interval"]
    assert [totals["steps"] for totals in saved] == [2, 2]
    assert saved[0]["sums"]["loss"] != saved[1]["sums"]["loss"]
    ranks.run(train, part, ranks=2)
    assert_same_run(part.out, whole.out)
