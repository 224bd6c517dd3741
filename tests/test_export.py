"""An exported backbone gives the same results as its run."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers.runs import final_tensors, small_config
from sce_fast.backbones.resnet import resnet18
from sce_fast.config import EvaluationConfig, replace
from sce_fast.evaluate import load_features
from sce_fast.export import export, open_backbone
from sce_fast.tools.embed import embed
from sce_fast.tools.evaluate import knn
from sce_fast.train import train
from sce_fast.train.checkpoint import collect, save_checkpoint
from sce_fast.train.folder import write_config
from sce_fast.train.step import TrainingStep


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "run"
        config = small_config(photo_folder, out, epochs=1)
        train(dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, neighbours=1)))
    return out


@pytest.mark.parametrize("momentum", [False, True], ids=["student", "momentum"])
def test_an_exported_backbone_is_the_runs(run, tmp_path, momentum):
    path = export(run, out=tmp_path / "deep" / "backbone.safetensors", momentum=momentum)
    prefix = "model.momentum_backbone." if momentum else "model.backbone."
    expected = {k.removeprefix(prefix): t for k, t in final_tensors(run).items() if k.startswith(prefix)}
    opened, of_run = open_backbone(path), open_backbone(run, momentum=momentum)
    assert opened.description == of_run.description
    assert opened.description.step == 3
    for network in (opened.network, of_run.network):
        state = network.state_dict()
        assert state.keys() == expected.keys() == resnet18().state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["sce_fast"])
    assert (described["backbone"], described["width"], described["small_input"]) == ("resnet18", 8, True)
    assert (described["resize"], described["crop"], described["momentum"]) == (40, 32, momentum)
    assert described["mean"] == [0.485, 0.456, 0.406]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_student_and_momentum_differ(run):
    student, momentum = (open_backbone(run, momentum=m).network.state_dict() for m in (False, True))
    assert not torch.equal(student["conv1.weight"], momentum["conv1.weight"])


def test_an_exported_backbone_embeds_and_evaluates_as_its_run(run, photo_folder, tmp_path):
    path = export(run, out=tmp_path / "backbone.safetensors")
    features = [load_features(embed(source, photo_folder, out=tmp_path / f"{i}.safetensors"))
                for i, source in enumerate((run, path))]  # fmt: skip
    assert torch.equal(features[0].features, features[1].features)
    settings = {"train": photo_folder, "test": photo_folder, "neighbours": (1, 3), "device": "cpu"}
    rows = knn(path, **settings, out=tmp_path / "a").rows
    assert rows == knn(run, **settings).rows == knn(run, neighbours=(1, 3)).rows  # the run's own folders
    files = {"train": tmp_path / "0.safetensors", "test": tmp_path / "1.safetensors"}
    assert rows == knn(None, **files, neighbours=(1, 3)).rows
    written = json.loads((tmp_path / "a" / "results.json").read_text())
    assert written["settings"]["source"] == str(path)
    assert written["settings"]["backbone"]["step"] == 3
    summary = json.loads((run / "summary.json").read_text())
    assert written["rows"][0]["top1"] == summary["knn_top1"]
    with pytest.raises(ValueError, match=r"0.safetensors holds features already: leave out \S*backbone.safetensors"):
        knn(path, **files)
    with pytest.raises(ValueError, match=r"backbone.safetensors is not a feature file of sce-fast embed"):
        knn(None, train=path, test=path)
    with pytest.raises(ValueError, match=r"backbone.safetensors names no evaluation folders"):
        knn(path)


def test_evaluation_of_images_names_bad_files(run, photo_folder, tmp_path):
    for name, content in (("a/1.jpg", None), ("b/2.jpg", b"")):
        target = tmp_path / "data" / name
        target.parent.mkdir(parents=True)
        target.write_bytes((photo_folder / "temple" / "000.jpg").read_bytes() if content is None else content)
    with pytest.raises(ValueError, match=r"(?s)b/2.jpg: empty.*never skip images: repair or remove these files"):
        knn(run, train=tmp_path / "data", test=tmp_path / "data")
    with pytest.raises(ValueError, match=r"b/2.jpg: empty"):
        embed(run, tmp_path / "data", out=tmp_path / "features.safetensors")
    assert not (tmp_path / "features.safetensors").exists()


def test_wrong_sources_are_named(run, tmp_path):
    save_file({"conv1.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for path, error, message in (
        (tmp_path / "nowhere", FileNotFoundError, "nowhere: no such run folder or exported backbone"),
        (tmp_path, FileNotFoundError, "is not a run folder"),
        (tmp_path / "other.safetensors", ValueError, "its metadata lacks 'sce_fast'"),
        (tmp_path / "text.safetensors", ValueError, "neither a run folder nor a safetensors file"),
    ):
        with pytest.raises(error, match=message):
            open_backbone(path)
    exported = export(run, out=tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match="exists already"):
        export(run, out=exported)
    with pytest.raises(ValueError, match="holds one backbone; give a run folder"):
        open_backbone(exported, momentum=True)
    save_file({}, tmp_path / "odd.safetensors", metadata={"sce_fast": json.dumps({"sped": 1})})
    with pytest.raises(ValueError, match=r"unknown or missing entries.*'sped'"):
        open_backbone(tmp_path / "odd.safetensors")


def test_a_run_without_evaluation_folders_asks_for_them(photo_folder, tmp_path):
    config = small_config(photo_folder, tmp_path / "run", epochs=1, evaluation=EvaluationConfig(resize=40, crop=32))
    train(config)
    with pytest.raises(ValueError, match="run names no evaluation folders: give --train and --test"):
        knn(config.out)


def test_a_3d_network_is_exported_with_pytorchvideos_names(tmp_path):
    config = small_config(tmp_path / "videos", tmp_path / "run")
    config = replace(config, clips={"frames": 4}, model={"backbone": "r3d18", "small_input": False})
    step = TrainingStep(config, torch.device("cpu"))
    config.out.mkdir()
    write_config(config)
    save_checkpoint(config.out / "checkpoints", 7, collect(step.modules, step.optimizer), {}, keep=1)
    path = export(config.out, out=tmp_path / "backbone.safetensors")
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert shapes["blocks.0.conv.weight"] == (8, 3, 1, 7, 7)
    assert shapes["blocks.4.res_blocks.0.branch1_conv.weight"] == (64, 32, 1, 1, 1)
    assert shapes["blocks.3.res_blocks.1.branch2.conv_a.weight"] == (32, 32, 3, 3, 3)
    assert shapes["blocks.1.res_blocks.0.branch2.norm_b.running_var"] == (8,)
    assert all(name.startswith("blocks.") for name in shapes)
    opened, clips = open_backbone(path), torch.randn(2, 3, 4, 32, 32)
    assert opened.description.step == 7
    with torch.no_grad():
        torch.testing.assert_close(opened.network(clips), step.model.backbone.eval()(clips))
