"""--init: the backbone of a new run starts with given weights; a resumed run does not read them again."""

import hashlib
import json
import shutil

import pytest
import torch
from torch import nn

from helpers.runs import assert_same_run, small_config
from sce_fast.backbones import build_backbone
from sce_fast.config import EvaluationConfig, replace
from sce_fast.export import export
from sce_fast.tools.dry_run import dry_run
from sce_fast.train import Trainer, resume, train
from sce_fast.train.checkpoint import checkpoints


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Write weights as torchvision does, with a classifier."""
    torch.manual_seed(5)
    state = build_backbone("resnet18", width=8, small_input=True).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save({**state, "fc.weight": torch.ones(10, 64)}, path)
    return path


def config_of(photo_folder, out, init, **changes):
    return small_config(photo_folder, out, init=init, evaluation=EvaluationConfig(crop=32, resize=40), **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "run"
        train(config_of(photo_folder, out, weights, epochs=2))
    return out


def test_student_and_teacher_start_with_them_and_the_heads_as_ever(photo_folder, tmp_path, weights):
    begun = Trainer(config_of(photo_folder, tmp_path / "run", weights)).model
    usual = Trainer(config_of(photo_folder, tmp_path / "usual", None)).model
    expected = torch.load(weights)
    for backbone in (begun.backbone, begun.momentum_backbone):
        assert all(torch.equal(t, expected[name]) for name, t in backbone.state_dict().items())
    for name, tensor in usual.state_dict().items():
        if "backbone" not in name:
            assert torch.equal(begun.state_dict()[name], tensor), name
    assert not torch.equal(usual.backbone.conv1.weight, expected["conv1.weight"])
    record = json.loads((tmp_path / "run" / "init.json").read_text())
    assert record["init"] == record["file"] == str(weights)
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not (tmp_path / "usual" / "init.json").exists()


@pytest.mark.slow
def test_a_run_or_an_exported_file_gives_its_student(photo_folder, tmp_path, run):
    exported = export(run, out=tmp_path / "backbone.safetensors")
    other = export(run, out=tmp_path / "momentum.safetensors", momentum=True)
    models = {
        name: Trainer(config_of(photo_folder, tmp_path / f"from_{name}", init)).model
        for name, init in (("run", run), ("file", exported), ("teacher", other))
    }
    tensors = {name: model.backbone.layer4[1].conv2.weight for name, model in models.items()}
    assert torch.equal(tensors["run"], tensors["file"])
    assert not torch.equal(tensors["run"], tensors["teacher"])
    record = json.loads((tmp_path / "from_run" / "init.json").read_text())
    assert record["file"] == str(checkpoints(run / "checkpoints")[-1].resolve() / "tensors.safetensors")


@pytest.mark.slow
def test_a_resumed_run_does_not_read_them_again(photo_folder, tmp_path, run, weights):
    copy = shutil.copy(weights, tmp_path / "copy.pth")
    config = config_of(photo_folder, tmp_path / "run", copy, epochs=2)
    train(config)
    shutil.rmtree(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    recorded = (tmp_path / "run" / "init.json").read_bytes()
    copy.unlink()
    resume(tmp_path / "run")
    assert_same_run(tmp_path / "run", run)
    assert (tmp_path / "run" / "init.json").read_bytes() == recorded
    assert json.loads((tmp_path / "run" / "config.json").read_text())["init"] == str(copy)
    with pytest.raises(ValueError, match=r"init: '\S+copy.pth' then, '\S+resnet18.pth' now"):
        train(replace(config, init=weights, resume=True))


@pytest.mark.parametrize(
    ("init", "changes", "error", "message"),
    [
        ("nowhere.pth", {}, FileNotFoundError, r"init: \S+nowhere.pth: no such file of weights"),
        (".", {}, FileNotFoundError, r"init=\S+: expected a file of weights, or a run folder with a checkpoint"),
        (
            "weights.pth",
            {"width": 16},
            ValueError,
            r"init: \S+ does not hold the weights of this ResNet:\n  \d+ of a",
        ),
        ("weights.pth", {"backbone": "resnet34"}, ValueError, r"\d+ missing: layer1.2.conv1.weight, "),
    ],
)
def test_what_does_not_fit_is_refused_before_the_run_folder_is_made(
    photo_folder, tmp_path, weights, init, changes, error, message
):
    shutil.copy(weights, tmp_path / "weights.pth")
    config = replace(config_of(photo_folder, tmp_path / "run", tmp_path / init), model=changes)
    with pytest.raises(error, match=message):
        Trainer(config)
    assert not config.out.exists()


def test_a_module_of_ones_own_takes_them_too(photo_folder, tmp_path):
    def network():
        return nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    torch.manual_seed(7)
    saved, own = network(), network()
    torch.save(saved.state_dict(), tmp_path / "own.pth")
    trainer = Trainer(config_of(photo_folder, tmp_path / "run", tmp_path / "own.pth"), backbone=own)
    assert trainer.model.backbone is own
    assert torch.equal(own[0].weight, saved[0].weight)


@pytest.mark.slow
def test_the_first_line_of_a_run_and_a_dry_run_know_of_them(photo_folder, tmp_path, run, weights, capsys):
    config = config_of(photo_folder, tmp_path / "run", weights, epochs=1)
    assert f"resnet18 on cpu, from the weights of {weights}" in Trainer(config)._describe()
    dry_run(config_of(photo_folder, tmp_path / "dry", weights, epochs=2))
    assert "2 steps of the same networks" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"gone.pth: no such file"):
        dry_run(config_of(photo_folder, tmp_path / "dry", tmp_path / "gone.pth", epochs=2))
    moved = shutil.copytree(run, tmp_path / "moved")
    (moved / "config.json").write_text((moved / "config.json").read_text().replace("resnet18.pth", "gone.pth"))
    dry_run(config_of(photo_folder, moved, weights.with_name("gone.pth"), epochs=2, resume=True))
    assert "a resume would go on from step_00000006" in capsys.readouterr().out
