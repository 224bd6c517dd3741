"""Resumes that change something: other images, more epochs, other settings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.images import write_png
from helpers.runs import assert_same_run, small_config
from sce_fast.config import EvaluationConfig, replace
from sce_fast.data.index import index_images
from sce_fast.data.order import batch_of_rank, epoch_order
from sce_fast.train import resume, train
from sce_fast.train.checkpoint import checkpoints, read_state
from sce_fast.train.folder import read_config, require_resumable, write_config
from sce_fast.train.log import read_log
from sce_fast.train.schedules import learning_rate, momentum
from sce_fast.train.step import TrainingStep
from sce_fast.train.timeline import Timeline

TINY = np.zeros((9, 9, 3), dtype=np.uint8)


def before_step(monkeypatch, acts):
    """Have acts[number]() called before the step of this number, which is counted from 0."""
    original = TrainingStep.__call__

    def step(self, parts, *, number, **settings):
        acts.get(number, lambda: None)()
        return original(self, parts, number=number, **settings)

    monkeypatch.setattr(TrainingStep, "__call__", step)


def stop():
    raise KeyboardInterrupt


@pytest.fixture
def data(photo_folder, tmp_path) -> Path:
    return Path(shutil.copytree(photo_folder, tmp_path / "data"))


def logged(run, name):
    return [line[name] for line in read_log(run / "log.jsonl") if line["event"] == "train"]


def victim_of(data, seed):
    """Return an image of the first step that comes again in the last step of epoch 1: no batch read ahead has it."""
    index = index_images(data)
    first, later = (batch_of_rank(epoch_order(seed, epoch, 24), step, 8) for epoch, step in ((0, 0), (1, 2)))
    return Path(index.listing.path((set(first.tolist()) & set(later.tolist())).pop()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*files cannot be used")
def test_a_file_replaced_during_the_run_does_not_block_its_resume(data, tmp_path, monkeypatch):
    """The run sets the file aside; resumed, it ends with the bits of a run that was not stopped."""
    whole = small_config(data, tmp_path / "whole", evaluation=EvaluationConfig())
    part = replace(whole, out=tmp_path / "part")
    victim = victim_of(data, whole.seed)
    content = victim.read_bytes()
    for config, stops in ((whole, {}), (part, {7: stop})):
        victim.write_bytes(content)
        with monkeypatch.context() as patch:
            before_step(patch, {1: lambda: (victim.unlink(), write_png(victim, TINY)), **stops})
            try:
                train(config)
            except KeyboardInterrupt:
                assert stops
    state = read_state(checkpoints(part.out / "checkpoints")[-1])
    assert state["bad_files"] == {str(victim.relative_to(data)): "changed size"}
    train(replace(part, resume=True))
    assert_same_run(part.out, whole.out)


@pytest.mark.slow
def test_accepted_changes_begin_the_epoch_anew_and_keep_the_schedules(data, tmp_path, monkeypatch):
    """From step 4 of 9, in epoch 1, on: 16 of 24 images are left, so epochs have two steps instead of three."""
    config = small_config(data, tmp_path / "run", evaluation=EvaluationConfig())
    config = replace(config, optimizer={"warmup_epochs": 0})
    with monkeypatch.context() as patch:
        before_step(patch, {5: stop})
        with pytest.raises(KeyboardInterrupt):
            train(config)
    for path in sorted(data.rglob("*.jpg"))[:8]:
        path.unlink()
    with pytest.raises(ValueError, match=r"8 missing: flower/001.jpg"):
        resume(config.out)
    message = (
        r"8 missing: .*From step 4 on the run trains on the 16 images.*Epoch 1 begins anew.* 2 steps \(3 when .* 8"
    )
    with monkeypatch.context() as patch:
        before_step(patch, {5: stop})
        with pytest.raises(KeyboardInterrupt), pytest.warns(UserWarning, match=message):
            resume(config.out, accept_changed_data=True)
    assert not read_config(config.out).accept_changed_data
    with pytest.warns(UserWarning, match="accepted by an earlier resume"):
        assert resume(config.out).steps == 8
    assert logged(config.out, "epoch") == [0, 0, 0, 1, 1, 1, 2, 2]
    places = [0, 1, 2, 3, 3, 4.5, 6, 7.5]  # in steps of the run as it began
    rates = [learning_rate(t, base=config.learning_rate, warmup_steps=0, total_steps=9) for t in places]
    assert logged(config.out, "learning_rate") == pytest.approx(rates)
    (first, second) = [json.loads(line) for line in (config.out / "changes.jsonl").read_text().splitlines()]
    assert first["step"] == second["step"] == 4
    assert "8 missing: flower/001.jpg" in first["changes"][0]
    assert resume(config.out).steps == 8  # nothing is left to do, and nothing to accept


def test_a_finished_run_is_extended_on_request(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig())
    summary = train(config)
    for call in (lambda: train(replace(config, resume=True, epochs=2)), lambda: resume(config.out, epochs=2)):
        with pytest.raises(ValueError, match=r"epochs=2: the run in \S+ has epochs=1, .* pass --stretch-schedule"):
            call()
    assert json.loads((config.out / "summary.json").read_text())["steps"] == 3
    with pytest.warns(UserWarning, match=r"epochs=2, and 1 before: from step 3 on, the schedules .* those of 2 epochs"):
        assert resume(config.out, epochs=2, stretch_schedule=True).steps == 6
    rates = [learning_rate(t, base=config.learning_rate, warmup_steps=3, total_steps=total)
             for t, total in enumerate([3, 3, 3, 6, 6, 6])]  # fmt: skip
    assert logged(config.out, "learning_rate") == pytest.approx(rates)
    assert read_config(config.out).epochs == 2
    (line,) = (config.out / "changes.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["step"] == 3
    assert record["summary"]["final_loss"] == summary.final_loss
    assert json.loads((config.out / "summary.json").read_text())["steps"] == 6
    with pytest.raises(ValueError, match=r"epochs=1: the run has 3 steps then, and \S+step_00000006 has done 6"):
        resume(config.out, epochs=1, stretch_schedule=True)
    assert read_config(config.out).epochs == 2


def test_settings_on_which_no_trained_number_depends_do_not_block_a_resume(tmp_path):
    config = small_config(tmp_path / "data", tmp_path / "run")
    (config.out / "checkpoints" / "step_00000003").mkdir(parents=True)
    write_config(config)
    config = replace(config, resume=True)
    free = {
        "data": "elsewhere", "device": "auto", "loader_threads": 7, "log_every": 5, "checkpoint_every": 9,
        "keep_checkpoints": 1, "pictures": True, "evaluation": {"every": 3, "neighbours": 7, "crop": 24},
    }  # fmt: skip
    for name, value in free.items():
        assert require_resumable(replace(config, **{name: value})).name == "step_00000003", name
    for name, value in {"seed": 2, "batch_size": 4, "loss": {"coefficient": 0.25}, "compile": True}.items():
        with pytest.raises(ValueError, match=rf"(?s)another config.*{name}"):
            require_resumable(replace(config, **{name: value}))


def test_a_timeline_counts_steps_as_the_run_began():
    plain = Timeline(epochs=3, steps_per_epoch=5, planned=5)
    assert [plain.scheduled(step) for step in range(15)] == list(range(15))
    assert (plain.total_steps, plain.scheduled_total, plain.place(14)) == (15, 15, (2, 4))
    changed = Timeline(epochs=4, steps_per_epoch=2, planned=4, from_step=6, from_epoch=1)
    assert changed.total_steps == 12
    assert [changed.place(step) for step in (6, 7, 8, 11, 12)] == [(1, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert [changed.scheduled(step) for step in (6, 7, 8, 11)] == [4, 6, 8, 14]
    assert momentum(changed.scheduled(11), base=0.9, schedule="cosine", total_steps=16) < 1
