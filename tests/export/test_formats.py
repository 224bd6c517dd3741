"""Every format of export is read again, as the other program reads it where that can be had."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
import torch

from sce_fast.backbones import build_backbone
from sce_fast.cli import main
from sce_fast.export import FORMATS, Foreign, detectron2, export, formats, open_backbone

IMAGES = Foreign(backbone="resnet18", width=8, small_input=True)
CLIPS = Foreign(backbone="r3d18", width=8, frames=4, resize=40, crop=32, seconds=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write the weights of a ResNet and of an R3D whose running statistics are not those of a new network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for foreign in (IMAGES, CLIPS):
        network = foreign.describe(folder).build()
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                tensor.uniform_(-0.1, 0.1)
            elif name.endswith(("running_var", "norm_b.weight")):
                tensor.uniform_(0.5, 1.5)
        torch.save(network.state_dict(), folder / f"{foreign.backbone}.pth")
    return folder


def written(folder, tmp_path, format, foreign=IMAGES):
    out = tmp_path / f"backbone{FORMATS[format].ending}"
    source = folder / f"{foreign.backbone}.pth"
    assert export(source, out=out, format=format, backbone=foreign) == out
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # nothing is left of what was written on the way
    return out, open_backbone(source, backbone=foreign)


def described(text, backbone):
    values = json.loads(text)
    assert (values["mean"], values["crop"]) == (list(backbone.description.mean), backbone.description.crop)
    assert values["weights"] == f"{backbone.description.backbone}.pth"
    return values


def same(features, backbone, tolerance=0.0):
    inputs = formats.example(backbone.description)
    inputs = torch.cat([inputs, inputs.flip(-1)])  # another number of them than in the example
    with torch.no_grad():
        expected = backbone.network(inputs)
        torch.testing.assert_close(features(inputs), expected, rtol=tolerance, atol=tolerance)
    assert (expected > 0).any(0).float().mean() > 0.9


def test_safetensors_are_read_by_every_command(folder, tmp_path):
    for foreign in (IMAGES, CLIPS):
        out, backbone = written(folder, tmp_path, "safetensors", foreign)
        opened = open_backbone(out)
        assert opened.description == backbone.description
        assert opened.description.view() == backbone.description.view()
        same(opened.network, backbone)
        with pytest.raises(ValueError, match=r"backbone='resnet50': \S+ says by itself what its network is; leave"):
            open_backbone(out, backbone="resnet50")
        out.unlink()


@pytest.mark.parametrize(("format", "foreign"), [("torchvision", IMAGES), ("pytorchvideo", CLIPS)])
def test_state_dicts_are_bare(folder, tmp_path, format, foreign):
    out, backbone = written(folder, tmp_path, format, foreign)
    state = torch.load(out, weights_only=True)
    assert list(state) == list(backbone.network.state_dict())
    described(state._metadata["sce_fast"]["description"], backbone)
    network = backbone.description.build().eval()
    network.load_state_dict(state)
    same(network, backbone)
    same(open_backbone(out, backbone=foreign).network, backbone)


# As torchvision and timm name the parameters of a ResNet; both were compared with the packages, for ResNet-18 and 50.
NAMES = re.compile(
    r"(layer[1-4]\.[01]\.((conv|bn)[12]|downsample\.[01])|conv1|bn1)"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)


def test_the_names_of_a_resnet_are_torchvisions_and_timms(folder, tmp_path):
    out, _ = written(folder, tmp_path, "torchvision")
    assert all(NAMES.fullmatch(name) for name in torch.load(out, weights_only=True))


def test_timm_finds_a_folder(folder, tmp_path):
    out, backbone = written(folder, tmp_path, "timm")
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((out / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("resnet18", 0, 64)
    view = {"input_size": [3, 32, 32], "crop_pct": 1.0, "std": list(backbone.description.std)}
    assert view.items() <= config["pretrained_cfg"].items()
    same(open_backbone(out / "model.safetensors").network, backbone)
    with pytest.raises(ValueError, match="exists already"):
        written(folder, tmp_path, "timm")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_timm_computes_the_same_features(tmp_path, name):
    timm = pytest.importorskip("timm")
    foreign = Foreign(backbone=name)
    torch.save(foreign.describe(tmp_path).build().state_dict(), tmp_path / "weights.pth")
    out = export(tmp_path / "weights.pth", out=tmp_path / "folder", format="timm", backbone=foreign)
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    backbone = open_backbone(tmp_path / "weights.pth", backbone=foreign)
    config = timm.data.resolve_model_data_config(model)
    assert (list(config["input_size"]), config["crop_pct"]) == ([3, 224, 224], 224 / 256)
    assert (tuple(config["mean"]), tuple(config["std"])) == (backbone.description.mean, backbone.description.std)
    images = formats.example(backbone.description)
    with torch.no_grad():
        assert torch.equal(model(images), backbone.network(images))
    again = open_backbone(out / "model.safetensors").network
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in backbone.network.state_dict().items())


def test_detectron2_finds_arrays_under_its_names(folder, tmp_path):
    out, backbone = written(folder, tmp_path, "detectron2")
    content = pickle.loads(out.read_bytes())  # as detectron2 does; the file is ours
    assert (content["__author__"], content["matching_heuristics"]) == ("sce_fast", True)
    described(content["sce_fast"], backbone)
    state, arrays = backbone.network.state_dict(), content["model"]
    for name, own in {
        "stem.conv1.weight": "conv1.weight", "stem.conv1.norm.running_var": "bn1.running_var",
        "res2.0.conv2.norm.bias": "layer1.0.bn2.bias", "res3.0.shortcut.weight": "layer2.0.downsample.0.weight",
        "res5.0.shortcut.norm.running_mean": "layer4.0.downsample.1.running_mean",
        "res4.1.conv1.weight": "layer3.1.conv1.weight",
    }.items():  # fmt: skip
        assert isinstance(arrays[name], np.ndarray)
        assert np.array_equal(arrays[name], state[own].numpy()), name
    assert len(arrays) == sum(not name.endswith("num_batches_tracked") for name in state)
    name = r"(stem|res[2-5]\.[01])\.(conv[12]|shortcut)(\.norm\.(bias|running_mean|running_var))?(\.norm)?(\.weight)?"
    assert all(re.fullmatch(name, found) for found in arrays)


def test_a_pickle_of_other_things_is_not_read(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps({"model": {"conv1": Harmful()}}))
    with pytest.raises(pickle.UnpicklingError, match=r"open is no numpy array"):
        detectron2.read(tmp_path / "harmful.pkl", {})
    assert not (tmp_path / "touched").exists()


@pytest.mark.slow
def test_onnx_runs_without_torch(folder, tmp_path):
    import onnxruntime

    out, backbone = written(folder, tmp_path, "onnx")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    described(session.get_modelmeta().custom_metadata_map["sce_fast"], backbone)
    (images,), (features,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape[1:], features.name) == ("images", [3, 32, 32], "features")
    same(lambda inputs: torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0]), backbone, 1e-5)


@pytest.mark.slow
def test_a_program_of_torch_export_runs_without_sce_fast(folder, tmp_path):
    out, backbone = written(folder, tmp_path, "torch-export", CLIPS)
    extra = {"sce_fast": ""}
    program = torch.export.load(out, extra_files=extra)
    assert described(extra["sce_fast"], backbone)["clips"]["frames"] == 4
    same(program.module(), backbone, 1e-6)


def test_a_file_that_gives_other_features_is_not_kept(folder, tmp_path, monkeypatch):
    right = FORMATS["torchvision"]

    def wrong(path, backbone):
        network = right.read(path, backbone)
        network.layer4[1].bn2.bias += 1e-3
        return network

    monkeypatch.setitem(FORMATS, "torchvision", dataclasses.replace(right, read=torch.no_grad()(wrong)))
    with pytest.raises(RuntimeError, match=r"format='torchvision': the features of what was written differ by"):
        written(folder, tmp_path, "torchvision")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "foreign", "ending", "message"),
    [
        ("detectron2", CLIPS, ".pkl", r"format='detectron2': expected a ResNet, and \S+ holds r3d18"),
        ("timm", CLIPS, "", r"format='timm': expected a ResNet or a network of timm, and \S+ holds r3d18"),
        ("pytorchvideo", IMAGES, ".pth", r"format='pytorchvideo': expected an R3D or X3D, and \S+ holds resnet18"),
        ("onnx", IMAGES, ".pth", r"out=\S+backbone.pth: expected a name that ends in .onnx for format='onnx'"),
        ("tensorflow", IMAGES, ".pb", r"unknown format 'tensorflow': expected one of safetensors, torchvision, "),
    ],
)
def test_what_a_format_does_not_take_is_refused(folder, tmp_path, format, foreign, ending, message):
    with pytest.raises(ValueError, match=message):
        export(folder / f"{foreign.backbone}.pth", out=tmp_path / f"backbone{ending}", format=format, backbone=foreign)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    weights = ["--backbone", "resnet18", "--width", "8", "--small-input"]
    with pytest.raises(SystemExit):
        main(["export", str(folder / "resnet18.pth"), "--out", str(tmp_path / "x.onnx"), "--format", "onnx", *weights])
    assert re.search(r"onnxscript.*; pip install 'onnx>=\S+' 'onnxruntime>=\S+' 'onnxscript>=", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_names_alone_are_said_to_be_no_more(folder, tmp_path, capsys):
    written(folder, tmp_path, "detectron2")
    note = "detectron2 has no resnet18 with width 8 and the stem for small images; only the names are detectron2's"
    assert note in capsys.readouterr().err


def test_weights_from_elsewhere_need_the_name_of_their_network(folder, tmp_path):
    path = folder / "resnet18.pth"
    with pytest.raises(ValueError, match=r"neither a run folder nor a safetensors file.*; for weights from elsewhere"):
        open_backbone(path)
    with pytest.raises(ValueError, match=r"width=8.* describes weights from elsewhere; also give backbone=NAME"):
        open_backbone(path, backbone=Foreign(width=8))
    with pytest.raises(ValueError, match=r"momentum=True is for run folders; choose a part of a file"):
        open_backbone(path, momentum=True, backbone=IMAGES)
    with pytest.raises(ValueError, match=r"backbone='resnet18': \S+ says by itself what its network is"):
        open_backbone(tmp_path, backbone="resnet18")
    with pytest.raises(ValueError, match=r"does not hold the weights of this ResNet:\n  \d+ of another shape: conv1"):
        open_backbone(path, backbone="resnet18")
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet19'"):
        open_backbone(path, backbone="resnet19")


def test_sizes_and_normalisation_of_weights_from_elsewhere(tmp_path):
    def view(**settings):
        return Foreign(**settings).describe(tmp_path / "x.pth").view()

    images = view(backbone="resnet50")
    assert (images.resize, images.crop, images.mean) == (256, 224, (0.485, 0.456, 0.406))
    assert (view(backbone="resnet18", small_input=True).resize, view(backbone="resnet50", crop=288).resize) == (32, 288)
    assert view(backbone="resnet50", resize=96).crop == 96
    clips = view(backbone="r3d50", frames=16, std=(0.5, 0.5, 0.5))
    assert (clips.mean, clips.std, clips.sampling.frames, clips.sampling.seconds) == ((0.45,) * 3, (0.5,) * 3, 16, 2.56)
    with pytest.raises(ValueError, match="crop=64, resize=32: expected 1 <= crop <= resize"):
        view(backbone="resnet50", crop=64, resize=32)


def test_the_command_converts_weights(folder, tmp_path, capsys):
    out = tmp_path / "backbone.safetensors"
    main([
        "export", str(folder / "r3d18.pth"), "--out", str(out), "--backbone", "r3d18", "--width", "8",
        "--frames", "4", "--crop", "32", "--resize", "40", "--seconds", "1", "--mean", "0.4", "0.5", "0.6"
    ])  # fmt: skip
    assert capsys.readouterr().out == f"{out}\n"
    opened = open_backbone(out)
    assert opened.description.mean == (0.4, 0.5, 0.6)
    same(opened.network, open_backbone(folder / "r3d18.pth", backbone=CLIPS))


def test_formats_of_the_command_are_those_of_the_table():
    from typing import get_args

    from sce_fast.tools.export import Format

    assert get_args(Format) == tuple(FORMATS)


def test_weights_of_wider_types_are_compared(tmp_path):
    """float16 weights become those of a float32 network."""
    network = build_backbone("resnet18", width=8)
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()},
               tmp_path / "half.pth")  # fmt: skip
    opened = open_backbone(tmp_path / "half.pth", backbone=dataclasses.replace(IMAGES, small_input=False))
    assert opened.network.conv1.weight.dtype == torch.float32
    assert torch.equal(opened.network.conv1.weight, network.conv1.weight.half().float())
