"""Networks of timm, by a stand-in for the package: which options they are built with, and what is missing."""

import builtins
import sys
from types import ModuleType

import pytest
from torch import nn

from helpers.runs import small_config
from sce_fast.backbones import build_backbone
from sce_fast.config import replace
from sce_fast.method.build import build_model

OPTIONS = {"vit": {"img_size", "dynamic_img_size"}, "mixer": {"img_size"}, "resnet": set()}


@pytest.fixture
def built(monkeypatch) -> list[dict[str, object]]:
    """Install the stand-in, and return the options of the networks that it builds."""
    options: list[dict[str, object]] = []

    def create_model(name, pretrained, num_classes, **given):
        assert (pretrained, num_classes) == (False, 0)
        for option in given.keys() - OPTIONS[name.partition(".")[0]]:
            raise TypeError(f"Network.__init__() got an unexpected keyword argument {option!r}")
        options.append(given)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network.num_features = 3
        return network

    timm = ModuleType("timm")
    timm.create_model, timm.list_models, timm.is_model = create_model, lambda: list(OPTIONS), OPTIONS.__contains__
    monkeypatch.setitem(sys.modules, "timm", timm)
    return options


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("vit", (), {}),
        ("vit", (96,), {"img_size": 96}),
        ("vit", (96, 96), {"img_size": 96}),
        ("vit", (224, 96), {"img_size": 224, "dynamic_img_size": True}),
        ("vit.augreg", (32,), {"img_size": 32}),
        ("mixer", (96,), {"img_size": 96}),
        ("mixer", (224, 96), {"img_size": 224}),
        ("resnet", (224, 96), {}),
    ],
)
def test_networks_are_built_for_the_size_of_the_views(built, name, sizes, expected):
    network = build_backbone(f"timm:{name}", sizes=sizes)
    assert built == [expected]
    assert network.dim == 3


def test_a_config_gives_the_sizes(built, tmp_path):
    model = {"backbone": "timm:vit", "width": 64, "small_input": False}
    config = replace(small_config(tmp_path, tmp_path), model=model)
    for sizes, evaluated, expected in (
        ((96,), 96, {"img_size": 96}),
        ((96, 224), None, {"img_size": 224, "dynamic_img_size": True}),
        ((96,), 40, {"img_size": 96, "dynamic_img_size": True}),
    ):
        config = replace(config, views={"sizes": sizes}, evaluation={"crop": evaluated, "resize": None})
        build_model(config.model, shapes=config.input_shapes())
        assert built.pop() == expected


def test_other_errors_of_a_network_are_shown(built):
    with pytest.raises(ValueError, match=r"unknown timm network 'resnt'; did you mean resnet\?"):
        build_backbone("timm:resnt")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'timm'", name="timm"), "needs timm: pip install timm"),
        (
            ModuleNotFoundError("No module named 'torchvision'", name="torchvision"),
            "timm is installed, but its import fails: No module named 'torchvision'; install what timm needs",
        ),
        (RuntimeError("operator torchvision::nms does not exist"), "its import fails: operator torchvision::nms does"),
    ],
)
def test_what_timm_lacks_is_named(monkeypatch, error, message):
    original = builtins.__import__

    def fail(name, *place):
        if name == "timm":
            raise error
        return original(name, *place)

    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(ImportError, match=message):
        build_backbone("timm:vit")
