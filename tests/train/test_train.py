"""Short runs on real images, with every part that a user's run has."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from helpers.runs import assert_same_run, final_tensors, small_config
from sce_fast.config import (
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ViewsConfig,
    from_json,
    to_json,
)
from sce_fast.data.image.augment import EvaluationView
from sce_fast.evaluate import labelled_indices, load_features
from sce_fast.export import open_backbone
from sce_fast.recipes import RECIPES
from sce_fast.tools.embed import embed
from sce_fast.tools.train import pretrain
from sce_fast.train import Trainer, train
from sce_fast.train.checkpoint import checkpoints, load_checkpoint
from sce_fast.train.folder import choose_device, open_run
from sce_fast.train.log import read_log
from sce_fast.train.step import TrainingStep


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, photo_folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        run = tmp_path_factory.mktemp("runs") / "undisturbed"
        train(small_config(photo_folder, run))
    return run


def test_a_run_leaves_config_log_checkpoints_and_summary(undisturbed, photo_folder):
    config = from_json(json.loads((undisturbed / "config.json").read_text()))
    assert config == small_config(photo_folder, undisturbed)
    events = read_log(undisturbed / "log.jsonl")
    steps = [event["step"] for event in events if event["event"] == "train"]
    assert steps == list(range(1, 10))
    assert [event["epoch"] for event in events if event["event"] == "knn"] == [0, 2, 3]
    rates = [event["learning_rate"] for event in events if event["event"] == "train"]
    peak = 0.3 * 8 / 256
    assert rates[:4] == [0.0, pytest.approx(peak / 2), pytest.approx(peak), pytest.approx(peak)]
    assert rates[-1] < 0.1 * peak
    assert [path.name for path in checkpoints(undisturbed / "checkpoints")] == [
        "step_00000006",
        "step_00000008",
        "step_00000009",
    ]
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["samples"] == 24
    assert summary["steps"] == 9
    assert summary["backend"] == "cpu"
    assert summary["final_loss"] == events[-2]["loss"]
    assert 0 <= summary["data_wait_share"] <= 1


def test_a_run_repeats_itself(undisturbed, photo_folder, tmp_path):
    Trainer(small_config(photo_folder, tmp_path / "again")).train()
    assert_same_run(tmp_path / "again", undisturbed)


@pytest.mark.parametrize(
    "stopped_after",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.slow),
        5,
        pytest.param(7, marks=pytest.mark.slow),
    ],
)
def test_resume_gives_the_same_bits(undisturbed, photo_folder, tmp_path, monkeypatch, stopped_after):
    """Stopped within an epoch and at its end; at, between and before checkpoints."""
    config = small_config(photo_folder, tmp_path / "run")
    original = TrainingStep.__call__

    def step(self, parts, *, number, **settings):
        if number == stopped_after:
            raise KeyboardInterrupt
        return original(self, parts, number=number, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", step)
        with pytest.raises(KeyboardInterrupt):
            Trainer(config).train()
    Trainer(dataclasses.replace(config, resume=True, loader_threads=1)).train()
    assert_same_run(config.out, undisturbed)


@pytest.mark.parametrize(("optimizer", "rate"), [pytest.param("sgd", 0.3, marks=pytest.mark.slow), ("adamw", 0.01)])
def test_other_optimizers_and_asymmetric_views_resume_too(photo_folder, tmp_path, optimizer, rate):
    changes = dict(
        optimizer=OptimizerConfig(name=optimizer, base_learning_rate=rate, warmup_epochs=0, weight_decay=5e-4),
        model=ModelConfig(
            backbone="resnet18", width=8, projector_hidden=(16,), dim=8, projector_norm="hidden", symmetric=False,
            predictor_hidden=0, momentum_schedule="constant",
        ),
        checkpoint_every=4,
        keep_checkpoints=9,
        evaluation=EvaluationConfig(),
    )  # fmt: skip
    whole = small_config(photo_folder, tmp_path / "whole", **changes)
    Trainer(whole).train()
    part = dataclasses.replace(whole, out=tmp_path / "part")
    Trainer(part).train()
    for path in checkpoints(part.out / "checkpoints")[1:]:  # as if killed right after step 4
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert Trainer(dataclasses.replace(part, resume=True)).train().knn_top1 is None
    assert_same_run(part.out, whole.out)


def test_resuming_a_finished_run_changes_nothing(undisturbed, photo_folder):
    before = final_tensors(undisturbed)
    summary = train(small_config(photo_folder, undisturbed, resume=True))
    assert summary.steps == 9
    assert summary.final_loss == json.loads((undisturbed / "summary.json").read_text())["final_loss"]
    assert all(torch.equal(t, before[name]) for name, t in final_tensors(undisturbed).items())


def test_a_run_is_never_overwritten(undisturbed, photo_folder):
    with pytest.raises(ValueError, match="already holds a run; pass --resume"):
        open_run(small_config(photo_folder, undisturbed))
    loss = LossConfig(queue_size=40, target_temperature=0.07, coefficient=0.25)
    changed = small_config(photo_folder, undisturbed, resume=True, seed=2, loss=loss)
    with pytest.raises(ValueError, match=r"(?s)another config.*loss.coefficient: 0.5 then, 0.25 now.*seed: 1 then, 2"):
        open_run(changed)


def test_training_moves_student_teacher_and_queue(photo_folder, tmp_path):
    trainer = Trainer(small_config(photo_folder, tmp_path / "run", optimizer=OptimizerConfig(warmup_epochs=0)))
    names = [name for name, _ in trainer.model.named_parameters()]
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    queue = trainer.training_step.queue
    keys = queue.keys.clone()
    trainer.training_step([next(trainer.loader).views], number=0, learning_rate=0.1, momentum=0.9)
    after = trainer.model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in names)
    assert queue.cursor.item() == 16  # both views' keys
    assert not torch.equal(queue.keys[:16], keys[:16])
    assert torch.equal(queue.keys[16:], keys[16:])


@pytest.mark.slow
def test_labels_never_reach_training(photo_folder, tmp_path):
    """The same images as a flat folder, without labels, give the same weights."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        (flat / f"{i:03d}.jpg").write_bytes(path.read_bytes())
    without = dict(evaluation=EvaluationConfig(resize=40, crop=32))
    Trainer(small_config(photo_folder, tmp_path / "classes", **without)).train()
    Trainer(small_config(flat, tmp_path / "run", **without)).train()
    assert_same_run(tmp_path / "classes", tmp_path / "run")


def test_embed_writes_features_with_names(undisturbed, photo_folder):
    path = embed(undisturbed, photo_folder)
    saved = load_features(path)
    assert saved.features.shape == (24, 64)
    assert saved.names[0] == "flower/001.jpg"
    assert saved.labels.tolist() == [0] * 12 + [1] * 12
    assert saved.classes == ["flower", "temple"]
    again = load_features(embed(undisturbed, photo_folder, out=path.with_name("again.safetensors"), batch_size=5))
    torch.testing.assert_close(again.features, saved.features)
    with pytest.raises(ValueError, match="exists already"):
        embed(undisturbed, photo_folder)


def test_backbone_of_a_run_loads_alone(undisturbed):
    opened = open_backbone(undisturbed)
    backbone, config = opened.network, opened.description
    assert config.width == 8
    tensors = final_tensors(undisturbed)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, tensors[f"model.backbone.{name}"])
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        open_backbone(undisturbed / "checkpoints")


@pytest.mark.slow
def test_a_run_over_bad_headers_resumes_with_the_same_bits(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "data")
    (tmp_path / "data" / "temple" / "010.jpg").write_bytes(b"")
    whole = small_config(tmp_path / "data", tmp_path / "whole", evaluation=EvaluationConfig())
    part = dataclasses.replace(whole, out=tmp_path / "part")
    for config in (whole, part):
        with pytest.warns(UserWarning, match="1 of 24 files cannot be used"):
            assert train(config).samples == 24
        assert (config.out / "bad_files.txt").read_text().startswith(f"{tmp_path}/data/temple/010.jpg")
    shutil.rmtree(checkpoints(part.out / "checkpoints")[-1])
    with pytest.warns(UserWarning, match="1 of 24 files cannot be used"):
        train(dataclasses.replace(part, resume=True))
    assert_same_run(part.out, whole.out)


def test_a_bad_file_among_the_evaluated_stops_before_the_run(photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "data")
    (tmp_path / "data" / "temple" / "010.jpg").write_bytes(b"")
    config = small_config(
        photo_folder, tmp_path / "run", evaluation=EvaluationConfig(train=photo_folder, test=tmp_path / "data")
    )
    with pytest.raises(ValueError, match=r"(?s)temple/010.jpg: empty.*Evaluations never skip images"):
        Trainer(config)
    assert not config.out.exists()


def test_evaluation_needs_labels(photo_folder, tmp_path):
    flat = photo_folder / "temple"
    evaluation = EvaluationConfig(train=flat, test=flat)
    with pytest.raises(ValueError, match="evaluation needs labels"):
        Trainer(small_config(photo_folder, tmp_path / "run", evaluation=evaluation))


def test_classes_are_matched_by_name(photo_folder, tmp_path):
    """A test folder that lacks a class must not shift the numbers of the other classes."""
    shutil.copytree(photo_folder / "temple", tmp_path / "some" / "temple")
    train_index, test_index = labelled_indices(photo_folder, tmp_path / "some", EvaluationView(), threads=2)
    assert train_index.listing.classes == test_index.listing.classes == ["flower", "temple"]
    assert set(test_index.labels.tolist()) == {1}
    with pytest.raises(ValueError, match=r"photos0 has classes that \S*some lacks: flower"):
        labelled_indices(tmp_path / "some", photo_folder, EvaluationView(), threads=2)


def test_clipping_bounds_the_norm_of_all_gradients(photo_folder, tmp_path):
    norms = []
    for clip_norm in (0, 0.01):
        config = small_config(
            photo_folder, tmp_path / f"{clip_norm}", optimizer=OptimizerConfig(clip_norm=clip_norm, warmup_epochs=0)
        )
        step = Trainer(config).training_step
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(8, 3, 32, 32, generator=generator) for _ in range(2)]
        step([views], number=0, learning_rate=0.1, momentum=0.9)
        norms.append(torch.cat([p.grad.flatten() for p in step.parameters]).norm().item())
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
def test_compiled_networks_train_as_the_others_and_resume(photo_folder, tmp_path):
    """In float64, so that another order of sums changes only the last digits. Names in the checkpoint stay."""
    changes = dict(
        epochs=1, checkpoint_every=1, precision="float64", evaluation=EvaluationConfig(),
        optimizer=OptimizerConfig(warmup_epochs=0),
    )  # fmt: skip
    plain = small_config(photo_folder, tmp_path / "plain", **changes)
    # Half as many passes through the networks take half as long to compile.
    plain = dataclasses.replace(plain, model=dataclasses.replace(plain.model, symmetric=False))
    compiled = dataclasses.replace(plain, out=tmp_path / "compiled", compile=True)
    train(plain)
    train(compiled)
    first, its = (load_checkpoint(config.out / "checkpoints" / "step_00000001").tensors for config in (plain, compiled))
    assert first.keys() == its.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(its[name], tensor, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    part = dataclasses.replace(compiled, out=tmp_path / "part", resume=True)
    shutil.copytree(compiled.out, part.out)
    for path in checkpoints(part.out / "checkpoints")[1:]:
        shutil.rmtree(path)
    train(part)
    assert_same_run(part.out, compiled.out)


def test_a_finished_run_has_pictures(photo_folder, tmp_path):
    pretrain(small_config(photo_folder, tmp_path / "run", epochs=1, pictures=True))
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == [
        "knn.png", "loss.png", "neighbours.png", "views.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid_and_survive_json(name, tmp_path):
    config = RECIPES[name](data=tmp_path / "images", out=tmp_path / "run")
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: dataclasses.replace(c.model, width=4), "model.width=4: expected a positive multiple of 8"),
        (lambda c: dataclasses.replace(c, batch_size=0), "batch_size=0: expected at least 1"),
        (
            lambda c: dataclasses.replace(c, loss=LossConfig(queue_size=15)),
            "loss.queue_size=15: expected at least the 16 keys",
        ),
        (lambda c: dataclasses.replace(c, epochs=1, optimizer=OptimizerConfig(warmup_epochs=2)), "warmup_epochs=2"),
        (lambda c: OptimizerConfig(name="adamw"), "optimizer.base_learning_rate=0.3: expected at most 0.1 for adamw"),
        (lambda c: LossConfig(temperature=0.0), "loss.temperature=0.0: expected a number > 0"),
        (lambda c: LossConfig(coefficient=2.0), "loss.coefficient=2.0"),
        (lambda c: ViewsConfig(names=("weak", "stong")), "'stong'.*did you mean 'strong'"),
        (lambda c: ViewsConfig(names=("weak",)), "at least two views"),
        (lambda c: ViewsConfig(sizes=(32, 24, 16)), "views.sizes="),
        (lambda c: ModelConfig(key_views=1), "model.key_views=1"),
        (lambda c: ModelConfig(momentum=1.5), "model.momentum=1.5"),
        (lambda c: EvaluationConfig(train=Path("x")), "both or neither"),
        (lambda c: from_json({**to_json(c), "epoch": 3}), "unknown or missing entries"),
    ],
)
def test_bad_settings_are_named(photo_folder, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(small_config(photo_folder, tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_cuda_without_a_gpu_is_refused():
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ValueError, match="device='cuda': torch sees no CUDA device"):
        choose_device("cuda")
