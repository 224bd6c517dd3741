"""A dry run tells what a run would do, refuses what a run refuses, and leaves nothing behind."""

import dataclasses
import re
import tempfile
from pathlib import Path

import pytest
import torch

from helpers.runs import small_config
from helpers.videos import write_video
from sce_fast.cli import main
from sce_fast.config import EvaluationConfig, TrainConfig, replace
from sce_fast.recipes import RECIPES
from sce_fast.tools import dry_run as module
from sce_fast.tools.dry_run import dry_run, reduced
from sce_fast.train import train
from sce_fast.train.step import TrainingStep


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_it_tells_what_was_found_and_what_would_be_done(photo_folder, tmp_path, capsys, own_temporary_folder):
    config = small_config(photo_folder, tmp_path / "run", epochs=20, accumulation=2, wandb=None, cuda_graph=True)
    config = replace(config, views={"names": ("alpha", "beta", "gamma"), "hue": 0.3}, loss={"queue_size": 48})
    dry_run(config)
    text = capsys.readouterr().out
    step = TrainingStep(config, torch.device("cpu"))
    counts = [
        sum(p.numel() for p in getattr(step.model, n).parameters()) for n in ("backbone", "projector", "predictor")
    ]
    for line in (
        f"Dry run: nothing is written to {tmp_path}/run; a run would begin there",
        f"24 image files in {photo_folder}",
        "2 classes of 12 to 12 files",
        "no bad files",
        "evaluation.train: 24 image files of 2 classes",
        "View beta: 32 pixels, crop 0.2 to 1 of the area, flip 0.5, jitter 0.8 of 0.4/0.4/0.2/0.3, grayscale 0.2, "
        "blur 0.1, solarize 0.2",
        "Steps: 20 epochs of 3 steps of 8 images, in 2 parts: 60 steps, 3 of them warm-up; on cpu, float32",
        "Peak learning rate: 0.009375 = 0.3 · 8 / 256 with lars, weight decay 1e-06",
        "Loss: the mean of 4 terms, queries of each view against keys of every other view; τ 0.1, τ_m 0.07, λ 0.5; "
        "queue of 48 keys of 8 numbers in float32",
        f"Parameters: {sum(counts):,} (backbone {counts[0]:,}, projector {counts[1]:,}, predictor {counts[2]:,})",
        "2 steps of the same networks, reduced to a batch of 4 and a queue of 16, at the peak rate for this batch, "
        "0.00469:",
        "Views 4 × 3 × 32 × 32 each; loss by the backend cpu",
        "CUDA graph: the step is not captured: the run is on the CPU, and CUDA graphs need an NVIDIA GPU",
    ):
        assert f"{line}\n" in text, line
    assert "\nMemory: about " in text
    losses = re.findall(r"step (\d): loss (\d+\.\d{4}), .* s for data, .* s for the step\n", text)
    assert [number for number, _ in losses] == ["1", "2"]
    assert not config.out.exists()
    assert list(own_temporary_folder.glob("sce-fast*")) == []


def test_it_names_the_candidates_of_a_run_without_a_queue(photo_folder, tmp_path, capsys):
    config = small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig())
    config = replace(
        config, batch_size=24, loss={"queue_size": 0, "batch_keys": True}, model={"evaluation_momentum": 0.999}
    )
    dry_run(config)
    text = capsys.readouterr().out
    assert "λ 0.5; no queue, and the other 23 keys of the view in the batch\n" in text
    assert "Evaluated: the student's average over the steps with momentum 0.999\n" in text
    assert "reduced to a batch of 4 and no queue, at the peak rate" in text
    assert "  step 2: loss " in text


@pytest.mark.slow
def test_it_is_an_option_of_every_recipe(photo_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen: list[TrainConfig] = []
    monkeypatch.setattr(module, "dry_run", seen.append)
    for name in RECIPES:
        main(["train", name, "--data", str(photo_folder), "--dry-run", "--epochs", "3"])
        assert (seen[-1].epochs, seen[-1].resume) == (3, False)
    with pytest.raises(SystemExit):
        main(["train", "videos", "--help"])
    assert "--dry-run" in capsys.readouterr().out
    assert len(seen) == len(RECIPES)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_what_a_run_refuses_is_refused(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig(resize=40, crop=32))
    with pytest.raises(ValueError, match=r"lies in data="):
        dry_run(dataclasses.replace(config, out=photo_folder / "run"))
    with pytest.raises(ValueError, match="batch_size=32 on 1 rank"):
        dry_run(replace(config, batch_size=32, loss={"queue_size": 64}))
    train(config)
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        dry_run(config)


@pytest.mark.slow
def test_a_resume_is_tried_without_touching_the_run(photo_folder, tmp_path, capsys):
    config = small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig(resize=40, crop=32))
    train(config)
    before = {path: path.stat().st_mtime_ns for path in config.out.rglob("*")}
    capsys.readouterr()
    main(["train", "folder", "--data", str(photo_folder), "--out", str(config.out), "--resume", "--dry-run"])
    assert f"nothing is written to {config.out}; a resume would go on from step_00000003" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*")} == before


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_an_error(photo_folder, tmp_path, monkeypatch, own_temporary_folder):
    monkeypatch.setattr(
        module, "reduced", lambda config, ranks: replace(config, optimizer={"base_learning_rate": 1e30})
    )
    with pytest.raises(RuntimeError, match="the loss or a gradient of step 2 is not finite: loss nan"):
        dry_run(small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig(resize=40, crop=32)))
    assert list(own_temporary_folder.glob("sce-fast*")) == []


@pytest.mark.parametrize(
    ("settings", "ranks", "batch", "queue"),
    [
        ({}, 1, 4, 16),
        ({}, 4, 16, 64),
        ({"accumulation": 128}, 1, 2, 8),
        ({"model": {"batch_norm": "shuffle"}}, 1, 16, 64),
        ({"model": {"batch_norm": "shuffle", "batch_norm_groups": 128}}, 1, 256, 1000),
        ({"model": {"batch_norm": "shuffle", "batch_norm_groups": 256}}, 2, 256, 1000),
        ({"model": {"batch_norm": "shuffle", "batch_norm_groups": 2}}, 2, 8, 32),
        ({"model": {"symmetric": False}}, 1, 4, 8),
        ({"loss": {"queue_size": 512}, "model": {"batch_norm_groups": 3}}, 3, 12, 48),
    ],
)
def test_reduced_steps_are_possible_wherever_the_run_is(tmp_path, settings, ranks, batch, queue):
    config = replace(
        small_config(tmp_path, tmp_path / "run"), batch_size=256 if ranks != 3 else 240, loss={"queue_size": 1000}
    )
    config = replace(config, **settings)
    small = reduced(config, ranks)
    assert (small.batch_size, small.loss.queue_size, small.accumulation) == (batch, queue, 1)
    assert small.evaluation_view() == config.evaluation_view()
    assert small.evaluation.train is None
    small.require_whole_groups(small.rank_batch(ranks) * ranks)
    assert small.model == config.model


def test_videos_are_told_as_images_are(tmp_path, capsys):
    for i in range(8):
        write_video(tmp_path / "data" / "abc"[i % 3] / str(i), "mpeg4", frames=12, size=(48, 64))
    options = ["--epochs", "10", "--batch-size", "4", "--clips.frames", "4", "--device", "cpu", "--dry-run"]
    main(["train", "videos", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *options])
    text = capsys.readouterr().out
    for line in (
        "8 video files in",
        "Clips: 4 frames, 0.24 s, sampler random\n",
        "Steps: 10 epochs of 2 steps of 4 videos: 20 steps",
        "\nDecoding: about 0.35 MiB for 4 videos at a time of, in the median, 64 × 48 pixels\n",
        "reduced to a batch of 4 and a queue of 4",
        "Views 4 × 3 × 4 × 32 × 32 each",
    ):
        assert line in text, line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("kinetics")])
def test_kinetics_recipes_run_dry(tmp_path, capsys, recipe):
    """With narrow networks and small frames; the other settings are those of the recipe."""
    for i in range(8):
        write_video(tmp_path / "data" / "ab"[i % 2] / str(i), "mpeg4", frames=12, size=(48, 64))
    options = ["--batch-size", "4", "--model.width", "8", "--views.sizes", "32", "--loss.queue-size", "16"]
    main(["train", recipe, "--data", str(tmp_path / "data"), "--device", "cpu", "--dry-run", *options])
    text = capsys.readouterr().out
    frames = RECIPES[recipe]("data").clips.frames
    assert "Steps: 200 epochs of 2 steps of 4 videos: 400 steps, 70 of them warm-up; on cpu, float32" in text
    assert f"Views 4 × 3 × {frames} × 32 × 32 each" in text
    assert len(re.findall(r"step \d: loss \d+\.\d{4}", text)) == 2
