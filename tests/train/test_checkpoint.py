"""The content of a checkpoint, and what happens if files of a run are damaged."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.runs import assert_same_run, small_config
from sce_fast.config import EvaluationConfig, to_json
from sce_fast.train import train
from sce_fast.train.checkpoint import Checkpoint, checkpoints, collect, load_checkpoint, restore, save_checkpoint
from sce_fast.train.optim import SGD, AdamW
from sce_fast.util.files import save_tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory, photo_folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "finished"
        train(small_config(photo_folder, out, precision="float16", evaluation=EvaluationConfig()))
    return out


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def config(photo_folder, run):
    return small_config(photo_folder, run, precision="float16", evaluation=EvaluationConfig(), resume=True)


def test_a_checkpoint_holds_all_that_a_run_is(finished, run, config):
    checkpoint = load_checkpoint(checkpoints(run / "checkpoints")[-1])
    for name in (
        "model.backbone.conv1.weight", "model.momentum_backbone.conv1.weight", "model.backbone.bn1.running_mean",
        "optimizer.momentum_buffer.model.backbone.conv1.weight", "guard.scale", "queue.keys", "queue.cursor",
        "random.0",
    ):  # fmt: skip
        assert name in checkpoint.tensors, name
    state = checkpoint.state
    assert state["step"] == 9
    assert state["loader"] == {"epoch": 3, "step": 0}
    assert state["config"] == {**to_json(config), "resume": False, "out": str(finished)}
    assert state["circumstances"]["torch"] == str(torch.__version__)
    assert {"sce_fast", "DALI", "ranks", "device", "threads", "instructions"} <= state["circumstances"].keys()
    assert state["bad_files"] == {}
    assert sorted(path.suffix for path in checkpoints(run / "checkpoints")[-1].iterdir()) == [".json", ".safetensors"]


def test_what_a_user_has_put_beside_them_is_no_checkpoint(run, config):
    folder = run / "checkpoints"
    whole = shutil.copytree(run, run.parent / "whole")
    for name in ("step_best", "step_00000002_keep"):
        shutil.copytree(checkpoints(folder)[0], folder / name)
    shutil.rmtree(checkpoints(folder)[-1])
    train(config)
    assert_same_run(run, whole)
    assert (folder / "step_best").exists()
    assert (folder / "step_00000002_keep").exists()


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(run, config, name):
    whole = shutil.copytree(run, run.parent / "whole")
    newest = checkpoints(run / "checkpoints")[-1]
    (newest / name).write_bytes((newest / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{newest.name}/{name} is damaged: .*; move its folder away to resume from"):
        train(config)
    newest.rename(run / "away")
    train(config)
    assert_same_run(run, whole)


@pytest.mark.parametrize("name", ["config.json", "images.json.gz"])
def test_a_damaged_file_of_the_run_is_named(run, config, name):
    (run / name).write_bytes((run / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{name} (is damaged|cannot be read): "):
        train(config)


@pytest.mark.parametrize("change", [{"epoch": 3}, {"batch_size": "8"}, {"loss": None}])
def test_a_config_of_another_version_is_named(run, config, change):
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        ValueError, match=r"config.json does not fit this version of sce_fast: .*; use the version that"
    ):
        train(config)


def test_without_its_list_of_images_the_fingerprint_tells(run, config, photo_folder):
    (run / "images.json.gz").unlink()
    data = shutil.copytree(photo_folder, run.parent / "data")
    (data / "temple" / "010.jpg").rename(data / "temple" / "100.jpg")
    with pytest.raises(ValueError, match=r"is not what the newest checkpoint .* was trained on: .* fingerprint"):
        train(dataclasses.replace(config, data=data))


@pytest.mark.slow
def test_a_run_without_a_step_is_begun_anew(photo_folder, tmp_path):
    """A run that failed at its start must not block its folder; a run with a step must."""
    config = small_config(photo_folder, tmp_path / "run")
    config.out.mkdir()
    (config.out / "config.json").write_text(json.dumps(to_json(dataclasses.replace(config, seed=5))))
    train(config)
    with pytest.raises(ValueError, match="already holds a run"):
        train(config)


def test_the_optimizers_state_belongs_to_names():
    """Two equal layers that swap places in the code keep their velocities."""

    def made(names):
        torch.manual_seed(0)
        layers = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        return {"model": layers}, SGD(layers.parameters(), lr=0.1)

    modules, optimizer = made("ab")
    for value, layer in zip((1.0, 2.0), modules["model"].values(), strict=True):
        for p in layer.parameters():
            p.grad = torch.full_like(p, value)
    optimizer.step()
    saved = Checkpoint(collect(modules, optimizer), {})
    others, other = made("ba")
    restore(saved, others, other)
    for name in "ab":
        for p, its in zip(modules["model"][name].parameters(), others["model"][name].parameters(), strict=True):
            assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[its]["momentum_buffer"])


def test_velocities_are_strided_as_their_weights():
    weight = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    modules, optimizer = {"model": weight}, SGD(weight.parameters(), lr=0.1)
    for p in weight.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    saved = {name: t.contiguous() for name, t in collect(modules, optimizer).items()}
    again = SGD(weight.parameters(), lr=0.1)
    restore(Checkpoint(saved, {}), modules, again)
    assert again.state[weight.weight]["momentum_buffer"].stride() == weight.weight.stride()
    torch.testing.assert_close(again.state[weight.weight], optimizer.state[weight.weight], rtol=0, atol=0)


def test_the_state_of_adamw_is_restored_with_its_shapes_and_dtypes():
    """The number of steps is one float64 number a weight, not a tensor like the weight."""
    weight = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    modules, optimizer = {"model": weight}, AdamW(weight.parameters(), lr=0.1)
    for p in weight.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    again = AdamW(weight.parameters(), lr=0.1)
    restore(Checkpoint({name: t.contiguous() for name, t in collect(modules, optimizer).items()}, {}), modules, again)
    for p in weight.parameters():
        assert again.state[p].keys() == {"exp_avg", "exp_avg_sq", "step"}
        for entry, t in optimizer.state[p].items():
            its = again.state[p][entry]
            assert (its.shape, its.stride(), its.dtype) == (t.shape, t.stride(), t.dtype)
            assert torch.equal(its, t)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, umask):
    old = os.umask(umask)
    try:
        checkpoint = save_checkpoint(tmp_path, 1, {"t": torch.ones(2)}, {}, keep=1)
        save_tensors(tmp_path / "features.safetensors", {"t": torch.ones(2)}, {})
    finally:
        os.umask(old)
    for path in (checkpoint / "tensors.safetensors", checkpoint / "state.json", tmp_path / "features.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path
    assert checkpoint.stat().st_mode & 0o777 == 0o777 & ~umask
