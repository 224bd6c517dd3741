"""A module of the caller's own as backbone: train, resume, open, export, and what says that it is needed."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn

from helpers.runs import assert_same_run, final_tensors, small_config
from sce_fast.backbones import build_backbone
from sce_fast.config import EvaluationConfig, ModelConfig
from sce_fast.evaluate import extract_features
from sce_fast.export import export, open_backbone
from sce_fast.method.build import build_model
from sce_fast.tools.embed import embed
from sce_fast.train import Trainer, resume, train
from sce_fast.train.checkpoint import checkpoints
from sce_fast.train.folder import read_config


def network(width: int = 12) -> nn.Sequential:
    torch.manual_seed(3)
    layers = nn.Conv2d(3, width, 5, 4, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten())


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("runs") / "run"
        own = network()
        train(small_config(photo_folder, out, evaluation=EvaluationConfig(crop=32, resize=40)), backbone=own)
    trained = {name: t for name, t in final_tensors(out).items() if name.startswith("model.backbone.")}
    assert all(torch.equal(t, trained[f"model.backbone.{name}"]) for name, t in own.state_dict().items())  # in place
    assert not torch.equal(own[0].weight, network()[0].weight)
    assert read_config(out).model.backbone == "own"
    return out


def test_it_is_trained_from_its_own_weights(photo_folder, tmp_path):
    own = network().eval()
    trainer = Trainer(small_config(photo_folder, tmp_path / "run", evaluation=EvaluationConfig()), backbone=own)
    assert trainer.model.backbone is own
    assert own.training
    assert torch.equal(trainer.model.momentum_backbone[0].weight, network()[0].weight)
    assert trainer.model.projector[0].in_features == 12


def test_it_resumes_with_the_same_bits(run, tmp_path):
    part = shutil.copytree(run, tmp_path / "part")
    shutil.rmtree(checkpoints(part / "checkpoints")[-1])
    with pytest.raises(ValueError, match="backbone 'own' is a module that was passed to train"):
        resume(part)
    with pytest.raises(ValueError, match=r"of another shape: model.backbone.0.weight"):
        resume(part, backbone=network(16))
    resume(part, backbone=network())
    assert_same_run(part, run)


def test_it_is_opened_and_exported(run, tmp_path, photo_folder):
    from sce_fast.data.index import index_images

    path = export(str(run), out=str(tmp_path / "own.safetensors"))
    for source in (run, path):
        with pytest.raises(
            ValueError, match=r"only Python code can pass it again: .*open_backbone\(path, backbone=…\)"
        ):
            open_backbone(source)
        with pytest.raises(ValueError, match=r"own\S* holds another network than Sequential|run holds another network"):
            open_backbone(source, backbone=network(16))
    opened = [open_backbone(source, backbone=network()) for source in (str(run), str(path))]
    index = index_images(photo_folder)
    features = [extract_features(b.network, index, b.description.view(), device=torch.device("cpu")) for b in opened]
    assert features[0].shape == (24, 12)
    assert torch.equal(*features)
    assert not any(module.training for b in opened for module in b.network.modules())
    with pytest.raises(ValueError, match="backbone 'own' is a module"):
        embed(run, photo_folder)


def test_a_backbone_without_features_is_refused():
    for own, message in (
        (nn.Conv2d(3, 4, 3), r"images \(2, 3, 24, 24\) give \(2, 4, 22, 22\), expected features \(2, F\)"),
        (nn.Linear(5, 5), r"Linear does not take images \(2, 3, 24, 24\)"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model(ModelConfig(), backbone=own, shapes=[(3, 24, 24)])


def test_opened_networks_are_in_eval_mode_and_paths_may_be_strings(photo_folder, tmp_path):
    config = small_config(str(photo_folder), str(tmp_path / "run"), epochs=1, evaluation=EvaluationConfig())
    train(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_epochs=0)))
    path = export(str(config.out), out=str(tmp_path / "deep" / "b.safetensors"))
    for source in (str(config.out), str(path)):
        opened = open_backbone(source)
        assert not any(module.training for module in opened.network.modules())
    assert embed(str(path), str(photo_folder), out=str(tmp_path / "f.safetensors")).exists()
    with pytest.raises(ValueError, match="backbone 'own' is a module"):
        build_backbone("own")
