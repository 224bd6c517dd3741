"""Weights from elsewhere are found by their names, and what does not fit is named."""

import argparse
import re
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sce_fast.backbones import build_backbone
from sce_fast.backbones.weights import read_weights


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet18", width=8, small_input=True)


@pytest.fixture(scope="module")
def empty() -> nn.Module:
    """Return the same architecture with other weights."""
    torch.manual_seed(1)
    return build_backbone("resnet18", width=8, small_input=True)


def under(prefix, network, factor=1):
    return {f"{prefix}{name}": factor * t for name, t in network.state_dict().items()}


def lightning(network):
    """Return what a Lightning checkpoint of SCE holds: student, heads, teacher, queue and the trainer's state."""
    heads = {"projector.layers.0.weight": torch.ones(2, 2), "predictor.0.weight": torch.ones(2), "queue": torch.ones(3)}
    teacher = {**under("momentum_trunk.", network, 2), "momentum_projector.layers.0.weight": torch.ones(2, 2)}
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": OrderedDict({**under("trunk.", network), **heads, **teacher}),
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_path": "x.ckpt", "best_model_score": torch.tensor(1.0)}},
    }


FILES = {
    "SCE's released trunk": lambda n: n.state_dict(),
    "torchvision": lambda n: {**n.state_dict(), "fc.weight": torch.ones(10, 64), "fc.bias": torch.ones(10)},
    "torchvision's references": lambda n: {"model": n.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
    "timm's trainer": lambda n: {"state_dict": n.state_dict(), "arch": "resnet18", "metric": 0.7, "version": 2},
    "Lightning": lightning,
    "MoCo": lambda n: {
        "state_dict": {
            **under("module.encoder_q.", n), "module.encoder_q.fc.0.weight": torch.ones(8, 64),
            **under("module.encoder_k.", n, 2), "module.queue": torch.ones(8, 4),
        }
    },
    "DINO": lambda n: {"teacher": under("backbone.", n, 2), "student": under("module.backbone.", n), "epoch": 3},
    "a checkpoint of sce_fast": lambda n: {
        **under("model.backbone.", n), **under("model.momentum_backbone.", n, 2),
        **under("optimizer.momentum_buffer.model.backbone.", n, 3), **under("average.", n, 4),
    },
}  # fmt: skip


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_the_student_is_found_by_its_names(tmp_path, network, empty, content):
    torch.save(content(network), tmp_path / "weights.pth")
    empty.load_state_dict(read_weights(tmp_path / "weights.pth", empty))
    for name, tensor in network.state_dict().items():
        assert torch.equal(empty.state_dict()[name], tensor), name


def test_other_files_of_the_same_tensors(tmp_path, network, empty):
    tensors = under("module.", network)
    save_file(tensors, tmp_path / "without_ending")
    torch.save(tensors, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    uncounted = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(uncounted, tmp_path / "uncounted.pth")  # as written before PyTorch 0.4.1
    for name in ("without_ending", "old.pth.tar", "uncounted.pth"):
        found = read_weights(tmp_path / name, empty)
        assert found.keys() == empty.state_dict().keys()
        assert torch.equal(found["layer4.1.conv2.weight"], network.layer4[1].conv2.weight)


def test_a_pattern_chooses_the_part(tmp_path, network, empty):
    path = tmp_path / "sce.ckpt"
    torch.save(lightning(network), path)
    for pattern, factor in ((r"^(trunk\.)", 1), (r"momentum_trunk\.", 2), (r"momentum_(?=t)trunk\.", 2)):
        found = read_weights(path, empty, pattern=pattern)
        assert torch.equal(found["conv1.weight"], factor * network.conv1.weight), pattern
    with pytest.raises(ValueError, match=r"pattern='enc.*': no name in \S+sce.ckpt begins so:\n  \d+ names: trunk."):
        read_weights(path, empty, pattern=r"encoder\.")
    with pytest.raises(ValueError, match=r"expected one part of \S+sce.ckpt; trunk.\S+ and momentum_trunk.\S+ match"):
        read_weights(path, empty, pattern=r"(momentum_)?trunk\.")
    with pytest.raises(ValueError, match=r"pattern='\(': expected a regular expression: missing \)"):
        read_weights(path, empty, pattern="(")


def test_several_students_are_not_guessed(tmp_path, network, empty):
    path = tmp_path / "two.pth"
    torch.save({**under("first.", network), **under("second.", network, 2)}, path)
    with pytest.raises(ValueError, match=r"several networks that fit, under 'first.', 'second.'; choose one with a"):
        read_weights(path, empty)
    found = read_weights(path, empty, pattern=r"second\.")
    assert torch.equal(found["conv1.weight"], 2 * network.conv1.weight)


@pytest.mark.parametrize(
    ("backbone", "small_input", "lines"),
    [
        ("resnet34", True, [r"\d+ unexpected: layer1.2.conv1.weight, (\S+ ){4}…"]),
        ("resnet18", False, [r"1 of another shape: conv1.weight \(8, 3, 7, 7\) instead of \(8, 3, 3, 3\)"]),
        (
            "r3d18",
            True,
            [r"100 missing: conv1.weight, bn1.weight, (\S+ ){3}…", r"\d+ unexpected: trunk.blocks.0.conv.w"],
        ),
    ],
)
def test_what_does_not_fit_is_named_in_short(tmp_path, empty, backbone, small_input, lines):
    other = build_backbone(backbone, width=8, small_input=small_input)
    torch.save({"state_dict": under("trunk.", other)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of this ResNet:\n") as error:
        read_weights(tmp_path / "other.pth", empty)
    told = str(error.value).splitlines()[1:]
    assert len(told) == len(lines)
    for line, expected in zip(told, lines, strict=True):
        assert re.match(rf"  {expected}", line), line


def test_the_classifier_of_an_r3d_is_left_out(tmp_path):
    torch.manual_seed(0)
    network, other = (build_backbone("r3d18", width=8) for _ in range(2))
    released = {**network.state_dict(), "blocks.5.proj.weight": torch.ones(4, 64), "blocks.5.proj.bias": torch.ones(4)}
    torch.save(released, tmp_path / "r3d.pyth")
    other.load_state_dict(read_weights(tmp_path / "r3d.pyth", other))
    assert torch.equal(other.blocks[4].res_blocks[1].branch2.conv_b.weight,
                       network.blocks[4].res_blocks[1].branch2.conv_b.weight)  # fmt: skip


class Settings(dict):
    """As Lightning's AttributeDict: a class that whoever reads the checkpoint may not have."""

    made: list[str] = []  # noqa: RUF012

    def __setstate__(self, state):
        self.made.append("restored")


def test_classes_in_a_checkpoint_are_not_imported(tmp_path, network, empty, monkeypatch):
    module = ModuleType("training_program")
    module.Settings = Settings
    monkeypatch.setattr(Settings, "__module__", "training_program")
    monkeypatch.setitem(sys.modules, "training_program", module)
    settings = Settings(lr=0.1)
    settings.name = "sce"
    paths = {"hyper_parameters": settings, "out": Path("runs"), "args": argparse.Namespace(a=[settings])}
    torch.save({**lightning(network), **paths}, tmp_path / "sce.ckpt")
    found = read_weights(tmp_path / "sce.ckpt", empty)
    assert torch.equal(found["conv1.weight"], network.conv1.weight)
    monkeypatch.delitem(sys.modules, "training_program")
    assert read_weights(tmp_path / "sce.ckpt", empty).keys() == found.keys()
    assert Settings.made == []


class Harmful:
    def __reduce__(self):
        return (open, ("touched", "w"))


def test_files_cannot_run_code(tmp_path, network, empty, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in (Harmful(), {**network.state_dict(), "more": Harmful()}):
        for zipped in (True, False):
            torch.save(content, "harmful.pth", _use_new_zipfile_serialization=zipped)
            try:
                read_weights("harmful.pth", empty)
            except ValueError:
                assert not (zipped and isinstance(content, dict))
            assert not Path("touched").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "nonsense.pth is neither a safetensors file nor one of torch.save: "),
        (b"", "nonsense.pth is neither a safetensors file nor one of torch.save: "),
        (b"\x05\0\0\0\0\0\0\0{nope", "nonsense.pth is neither a safetensors file nor one of torch.save: "),
        ([1, 2], "nonsense.pth holds no tensors by name; expected a state dict, or a checkpoint with one"),
        ({"epoch": 3}, "nonsense.pth holds no tensors by name"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, empty, content, message):
    path = tmp_path / "nonsense.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(path, empty)
    assert "\n" not in str(error.value)
    assert "weights_only` set to `False" not in str(error.value)


def test_paths_without_a_file_are_refused(tmp_path, empty):
    with pytest.raises(FileNotFoundError, match=r"gone.pth: no such file of weights"):
        read_weights(tmp_path / "gone.pth", empty)
    with pytest.raises(ValueError, match="is a folder; expected a file of weights"):
        read_weights(tmp_path, empty)
