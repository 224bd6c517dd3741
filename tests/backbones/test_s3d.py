"""S3D against a plain implementation from torchvision's parameter names, and the names of other releases."""

import pytest
import torch
from torch.nn import functional as F

from helpers.plain import Weights, away_from_the_start, batch_norm, conv, mean
from sce_fast.backbones.s3d import s3d
from sce_fast.backbones.weights import read_weights

POOLS = {1: ((1, 3, 3), (1, 2, 2)), 4: ((1, 3, 3), (1, 2, 2)), 7: (3, 2), 13: (2, 2)}  # window and stride
BLOCKS = (5, 6, 8, 9, 10, 11, 12, 14, 15)


def plain_forward(w, x):
    """Return the features in eval mode: separated convolutions, nine blocks of four branches, four pools."""

    def layer(x, name, stride=1):
        return batch_norm(w, conv(w, x, f"{name}.0", stride=stride), f"{name}.1", eps=1e-3).relu()

    def separated(x, name, stride=1):
        return layer(layer(x, f"{name}.0", (1, stride, stride)), f"{name}.1", (stride, 1, 1))

    for number in range(16):
        name = f"features.{number}"
        if number in POOLS:
            window, stride = POOLS[number]
            padding = 0 if number == 13 else 1 if number == 7 else (0, 1, 1)
            x = F.max_pool3d(x, window, stride, padding)
        elif number in BLOCKS:
            wide = separated(layer(x, f"{name}.branch1.0"), f"{name}.branch1.1")
            narrow = separated(layer(x, f"{name}.branch2.0"), f"{name}.branch2.1")
            pooled = layer(F.max_pool3d(x, 3, 1, 1), f"{name}.branch3.1")
            x = torch.cat([layer(x, f"{name}.branch0"), wide, narrow, pooled], 1)
        elif number == 2:
            x = layer(x, name)
        else:
            x = separated(x, name, 2 if number == 0 else 1)
    return mean(x)


def test_the_network_equals_a_plain_implementation():
    network = away_from_the_start(s3d(width=8))
    weights, clips = Weights(network), torch.randn(1, 3, 9, 75, 68, dtype=torch.float64)
    with torch.no_grad():
        found, expected = network(clips), plain_forward(weights, clips)
    assert weights.unread == set()
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_size_is_the_published_one():
    """torchvision states 8,320,048 parameters with its classifier of 400 classes."""
    with torch.device("meta"):
        network = s3d()
        assert network(torch.empty(2, 3, 16, 224, 224)).shape == (2, network.dim) == (2, 1024)
        assert network.features(torch.empty(1, 3, 64, 224, 224)).shape == (1, 1024, 8, 7, 7)
    assert sum(p.numel() for p in network.parameters()) == 8_320_048 - (1024 * 400 + 400)
    shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    assert shapes["features.0.0.0.weight"] == (64, 3, 1, 7, 7)
    assert shapes["features.0.1.0.weight"] == (64, 64, 7, 1, 1)
    assert shapes["features.8.branch1.1.0.0.weight"] == (208, 96, 1, 3, 3)
    assert shapes["features.15.branch3.1.0.weight"] == (128, 832, 1, 1, 1)


def test_short_clips_of_small_frames_pass():
    network = s3d(width=8).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 1, 16, 16)).isfinite().all()
        small = s3d(width=8, small_input=True).eval()
        assert small.features(torch.randn(1, 3, 8, 32, 32)).shape == (1, small.dim, 1, 4, 4)


def kylemins(name):
    """Return kylemin's name of a tensor that torchvision calls so."""
    return "module." + in_layers(name, ("conv_s", "bn_s", "conv_t", "bn_t")).replace("features.", "base.")


MODULES = {
    "Conv_1a": (0, "block1.0"), "Conv_2b": (2, "block2.1"), "Conv_2c": (3, "block2.2"), "Mixed_3b": (5, "block3.1"),
    "Mixed_3c": (6, "block3.2"), "Mixed_4b": (8, "block4.1"), "Mixed_4c": (9, "block4.2"), "Mixed_4d": (10, "block4.3"),
    "Mixed_4e": (11, "block4.4"), "Mixed_4f": (12, "block4.5"), "Mixed_5b": (14, "block5.1"),
    "Mixed_5c": (15, "block5.2"),
}  # fmt: skip


def sces(name, *, in_block):
    """Return the name in the code of SCE, which has every module twice: by its own name, and in a block."""
    number = int(name.split(".")[1])
    own = next(key for key, (place, _) in MODULES.items() if place == number)
    prefix = MODULES[own][1] if in_block else own
    return "trunk." + in_layers(name, ("conv1", "bn1", "conv2", "bn2")).replace(f"features.{number}", prefix)


def in_layers(name, names):
    """Return a name in which layers have these names instead of numbers: in space, in time; else conv and bn."""
    head, kind, tensor = name.rsplit(".", 2)
    head = head.replace(".branch0", ".branch0.0")
    place = ".".join(head.split(".")[2:])
    separate = head.startswith(("features.0", "features.3")) or place.startswith(("branch1.1", "branch2.1"))
    if separate:
        head, part = head.rsplit(".", 1)
        return f"{head}.{names[2 * int(part) + int(kind)]}.{tensor}"
    return f"{head}.{('conv', 'bn')[int(kind)]}.{tensor}"


@pytest.mark.parametrize("program", ["torchvision", "kylemin", "SCE"])
def test_files_of_all_releases_are_read(tmp_path, program):
    torch.manual_seed(0)
    network, other = s3d(width=8), s3d(width=8)
    own = network.state_dict()
    if program == "torchvision":
        saved = {**own, "classifier.1.weight": torch.ones(4, 128, 1, 1, 1), "classifier.1.bias": torch.ones(4)}
    elif program == "kylemin":
        saved = {kylemins(name): t for name, t in own.items()}
        assert {"module.base.0.conv_s.weight", "module.base.5.branch0.0.conv.weight"} <= saved.keys()
        assert {"module.base.2.bn.bias", "module.base.15.branch2.1.bn_t.running_var"} <= saved.keys()
        saved |= {"module.fc.0.weight": torch.ones(4, 128, 1, 1, 1), "module.fc.0.bias": torch.ones(4)}
    else:
        saved = {sces(name, in_block=twice): t for twice in (False, True) for name, t in own.items()}
        assert {"trunk.Conv_1a.conv1.weight", "trunk.block1.0.conv1.weight"} <= saved.keys()
        assert {"trunk.Mixed_4b.branch1.0.conv.weight", "trunk.block4.1.branch1.1.bn2.bias"} <= saved.keys()
    torch.save(saved, tmp_path / "s3d.pth")
    found = read_weights(tmp_path / "s3d.pth", other)
    assert found.keys() == own.keys()
    for name, tensor in own.items():
        assert torch.equal(found[name], tensor), name
