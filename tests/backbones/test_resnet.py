"""Backbones: parameters, names and feature maps of the published networks."""

import pytest
import torch

from sce_fast.backbones import build_backbone
from sce_fast.backbones.resnet import BasicBlock, ResNet


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [  # torchvision's numbers without the classifier
        ("resnet18", 11_176_512, 512),
        ("resnet34", 21_284_672, 512),
        ("resnet50", 23_508_032, 2048),
        pytest.param("resnet101", 44_549_160 - 2_049_000, 2048, marks=pytest.mark.slow),
        pytest.param("resnet152", 60_192_808 - 2_049_000, 2048, marks=pytest.mark.slow),
        ("wide_resnet50_2", 68_883_240 - 2_049_000, 2048),
        pytest.param("wide_resnet101_2", 126_886_696 - 2_049_000, 2048, marks=pytest.mark.slow),
    ],
)
def test_backbones_have_the_published_size(name, parameters, dim):
    with torch.device("meta"):
        backbone = build_backbone(name)
        shapes = {k: tuple(v.shape) for k, v in backbone.state_dict().items()}
        assert backbone(torch.empty(2, 3, 224, 224)).shape == (2, dim)
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert backbone.dim == dim
    # torchvision's names and shapes
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer2.0.downsample.0.weight"][2:] == (1, 1)
    assert "layer2.0.downsample.1.running_var" in shapes
    inner = 1024 if name.startswith("wide") else 512
    assert shapes["layer4.1.conv2.weight"] == (inner, inner, 3, 3)
    assert ("layer1.0.downsample.0.weight" in shapes) == (dim == 2048)
    assert not any(key.startswith("fc") for key in shapes)


def test_feature_maps_have_the_published_sizes():
    """The stem strides 224 → 112 → 56, stages give 56, 28, 14, 7; the small stem keeps 32 up to the second stage."""
    for small_input, size, expected in ((False, 224, [56, 28, 14, 7]), (True, 32, [32, 16, 8, 4])):
        backbone = build_backbone("resnet18", width=4, small_input=small_input)
        found = []
        for stage in range(1, 5):
            backbone.get_submodule(f"layer{stage}").register_forward_hook(
                lambda _module, _inputs, output, found=found: found.append(output.shape[-1])
            )
        backbone(torch.randn(2, 3, size, size))
        assert found == expected


def test_bottleneck_strides_in_its_3x3():
    backbone = build_backbone("resnet50", width=4)
    assert backbone.layer2[0].conv2.stride == (2, 2)
    assert backbone.layer2[0].conv1.stride == (1, 1)


def test_basic_blocks_are_never_wide():
    with pytest.raises(ValueError, match="widening=2: expected 1"):
        ResNet(BasicBlock, (2, 2, 2, 2), widening=2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet19", {}, "unknown backbone 'resnet19'.*did you mean 'resnet18'"),
        ("resnet18", {"width": 0}, "width=0"),
        ("timm:resnet18", {"width": 32}, "takes neither width=32"),
    ],
)
def test_bad_backbones_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **settings)
