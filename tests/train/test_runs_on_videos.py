"""A run on videos, from files to its pictures: it trains, evaluates, resumes, and shares its batches among ranks."""

import dataclasses
import json

import pytest
import torch

from helpers import ranks
from helpers.runs import assert_same_run, final_tensors, small_video_config
from helpers.videos import write_video
from sce_fast.config import replace
from sce_fast.evaluate import load_features
from sce_fast.export import export, open_backbone
from sce_fast.tools.embed import embed
from sce_fast.tools.report import write_report
from sce_fast.train import Trainer, resume, train
from sce_fast.train.log import read_log


def test_trains_evaluates_and_leaves_a_backbone(video_folder, tmp_path, capsys):
    config = small_video_config(video_folder, tmp_path / "run")
    summary = train(config)
    assert (summary.kind, summary.samples, summary.steps) == ("videos", 12, 9)
    assert 0 <= summary.knn_top1 <= 1
    assert "12 videos, 3 epochs of 3 steps of 4 videos; r3d18 on cpu" in capsys.readouterr().err
    assert all("videos_per_second" in line for line in read_log(config.out / "log.jsonl") if line["event"] == "train")

    path = export(config.out, out=tmp_path / "backbone.safetensors")
    backbone, view = open_backbone(path), config.evaluation_view()
    assert backbone.description.view() == dataclasses.replace(
        view, sampling=dataclasses.replace(view.sampling, temporal_difference=0.0)
    )
    features = [load_features(embed(source, video_folder)) for source in (config.out, path)]
    assert features[0].features.shape == (12, 64)
    assert features[0].names[0] == "even/00.mp4"
    assert torch.equal(features[0].features, features[1].features)
    assert {picture.name for picture in write_report(config.out)} >= {"loss.png", "views.png", "neighbours.png"}


@pytest.mark.slow
def test_resumes_at_any_step_with_the_same_bits(video_folder, tmp_path):
    whole = small_video_config(video_folder, tmp_path / "whole", checkpoint_every=1, keep_checkpoints=99)
    train(whole)
    for step in (1, 3, 5):
        part = tmp_path / str(step)
        Trainer(replace(whole, out=part))
        for file in ("log.jsonl", "images.json.gz"):
            (part / file).write_bytes((whole.out / file).read_bytes())
        checkpoint = whole.out / "checkpoints" / f"step_{step:08d}"
        (part / "checkpoints" / checkpoint.name).mkdir(parents=True)
        for file in checkpoint.iterdir():
            (part / "checkpoints" / checkpoint.name / file.name).write_bytes(file.read_bytes())
        resume(part, loader_threads=1)
        assert_same_run(part, whole.out)


@pytest.mark.slow
def test_two_ranks_train_as_one(video_folder, tmp_path):
    model = {"batch_norm": "sync"}
    tensors = []
    for count in (1, 2):
        config = small_video_config(video_folder, tmp_path / str(count), precision="float64", loader_threads=1)
        ranks.run(train, replace(config, model=model), ranks=count)
        tensors.append(final_tensors(config.out))
    queues = [t["queue.keys"] for t in tensors]
    torch.testing.assert_close(queues[1], queues[0], rtol=0, atol=1e-8)


@pytest.mark.slow
def test_a_bad_video_is_named_and_replaced(video_folder, tmp_path):
    data = tmp_path / "data"
    for i in range(12):
        path = write_video(data / f"{i:02d}", frames=20, size=(64, 80), seed=i)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    config = small_video_config(data, tmp_path / "run", checkpoint_every=1, keep_checkpoints=99)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, train=None, test=None))
    with pytest.warns(UserWarning, match=r"11.mp4: truncated or damaged\nOther videos replace them"):
        train(config)
    assert (config.out / "bad_files.txt").read_text() == f"{path}\ttruncated or damaged\n"
    before = json.loads((config.out / "summary.json").read_text())
    path.unlink()
    with pytest.warns(UserWarning, match=r"missing"):
        summary = resume(config.out, epochs=4, stretch_schedule=True)
    assert summary.steps > before["steps"]


@pytest.mark.slow
def test_a_changed_video_is_refused(video_folder, tmp_path):
    data = tmp_path / "data"
    for i in range(8):
        write_video(data / f"{i:02d}", frames=20, size=(64, 80), seed=i)
    config = small_video_config(data, tmp_path / "run", epochs=1)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, train=None, test=None))
    train(config)
    write_video(data / "03", frames=14, size=(64, 80), seed=3)
    with pytest.raises(ValueError, match=r"1 of another size or length(.|\n)*03.mp4"):
        resume(config.out, epochs=2, stretch_schedule=True)
