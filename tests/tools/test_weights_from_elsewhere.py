"""embed and evaluate take weights from elsewhere with the name of their network."""

import json
import shutil

import pytest
import torch

from sce_fast.backbones import build_backbone
from sce_fast.cli import main
from sce_fast.evaluate import load_features
from sce_fast.evaluate.store import weights_digest
from sce_fast.export import export


@pytest.fixture(scope="module")
def places(tmp_path_factory, photo_folder):
    """Write weights as torchvision does, and a folder of two classes with two images each."""
    folder = tmp_path_factory.mktemp("places")
    for name in ("temple/000.jpg", "temple/002.jpg", "flower/001.jpg", "flower/003.jpg"):
        (folder / "DIR" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo_folder / name, folder / "DIR" / name)
    torch.manual_seed(0)
    torch.save({**build_backbone("resnet18").state_dict(), "fc.bias": torch.ones(9)}, folder / "resnet18.pth")
    return folder


def test_features_are_those_of_the_exported_file(places, tmp_path, capsys):
    weights, data = str(places / "resnet18.pth"), str(places / "DIR")
    main(["embed", weights, data, "--backbone", "resnet18", "--out", str(tmp_path / "a"), "--device", "cpu"])
    exported = export(weights, out=tmp_path / "backbone.safetensors", backbone="resnet18")
    main(["embed", str(exported), data, "--out", str(tmp_path / "b"), "--device", "cpu"])
    features = [load_features(tmp_path / name).features for name in "ab"]
    assert features[0].shape == (4, 512)
    assert torch.equal(*features)
    capsys.readouterr()
    out = ["--out", str(tmp_path / "knn")]
    sets = ["--train", data, "--test", data, "--neighbours", "1", "--device", "cpu"]
    main(["evaluate", "knn", weights, "--backbone", "resnet18", *sets, *out])
    found = json.loads((tmp_path / "knn" / "results.json").read_text())
    assert found["rows"][0]["top1"] == 1.0  # each image finds itself
    assert found["settings"]["backbone"]["weights"] == "resnet18.pth"


COMMANDS = {
    "knn": ["--neighbours", "1"],
    "logistic": ["--regularization", "1"],
    "linear": ["--epochs", "1", "--batch-size", "4", "--size", "32", "--resize", "32"],
    "semi-supervised": ["--epochs", "1", "--batch-size", "4", "--share", "1", "--schedule", "cosine"],
    "transfer": ["--weight-decays", "1", "--crop", "32"],
    "svm": ["--name", "mine", "--shots", "1", "--draws", "1", "--crop", "32"],
}


@pytest.mark.parametrize("method", [n if n == "knn" else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS])
def test_evaluations_take_networks_that_need_more_than_a_name(places, tmp_path, method):
    network = build_backbone("resnet18", width=8, small_input=True)
    momentum = build_backbone("resnet18", width=8, small_input=True)
    tensors = {f"{part}.{name}": tensor for part, own in (("trunk", network), ("momentum_trunk", momentum))
               for name, tensor in own.state_dict().items()}  # fmt: skip
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    architecture = ["--backbone", "resnet18", "--width", "8", "--small-input", "--pattern", r"momentum_trunk\."]
    sets = ["--train", str(places / "DIR"), "--test", str(places / "DIR")]
    if method in ("transfer", "svm"):
        for part in ("train", "test", "val"):
            shutil.copytree(places / "DIR", tmp_path / "mine" / part)
        sets = ["--sets", f"mine={tmp_path / 'mine'}"] if method == "transfer" else [str(tmp_path / "mine")]
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--mean", "0.5", "0.5", "0.5"]
    main(["evaluate", method, str(tmp_path / "last.ckpt"), *sets, *architecture, *out, *COMMANDS[method]])
    settings = json.loads((tmp_path / "out" / "results.json").read_text())["settings"]
    wanted = {"backbone": "resnet18", "width": 8, "small_input": True, "crop": 32, "mean": [0.5] * 3}
    assert wanted.items() <= settings["backbone"].items()
    if method != "semi-supervised":
        assert settings["weights"] == weights_digest(momentum)


def test_without_a_name_the_option_is_named(places, capsys):
    for command in (["embed", str(places / "resnet18.pth"), str(places / "DIR")],
                    ["export", str(places / "resnet18.pth"), "--out", str(places / "x.safetensors")]):  # fmt: skip
        with pytest.raises(SystemExit):
            main(command)
        assert "for weights from elsewhere, name their network: --backbone resnet50, say" in capsys.readouterr().err
