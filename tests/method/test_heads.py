"""Projector and predictor have the published layers."""

import pytest
from torch import nn

from sce_fast.config import ModelConfig
from sce_fast.method.build import build_heads
from sce_fast.method.heads import mlp, predictor, projector
from sce_fast.util.settings import replaced


def test_heads_are_the_published_ones():
    imagenet = projector(2048, (4096, 4096), 256, norm="all")
    kinds = [type(layer) for layer in imagenet]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]
    assert all(layer.bias is None for layer in imagenet if isinstance(layer, nn.Linear))
    assert not imagenet[-1].affine
    assert imagenet[1].affine

    cifar = projector(512, (512,), 128, norm="hidden")
    assert [type(layer) for layer in cifar] == [*block, nn.Linear]
    assert cifar[0].bias is None
    assert cifar[-1].bias is not None

    plain = projector(2048, (4096,), 256, norm="none")
    assert [type(layer) for layer in plain] == [nn.Linear, nn.ReLU, nn.Linear]
    assert plain[0].bias is not None

    head = predictor(256, 4096)
    assert [type(layer) for layer in head] == [*block, nn.Linear]
    assert head[0].bias is None
    assert head[-1].bias is None


def layers_of(head):
    """Return each layer as its kind, with b for a bias and γ for an affine normalisation."""
    marks = {nn.Linear: lambda m: "b" * (m.bias is not None), nn.BatchNorm1d: lambda m: "γ" * m.affine}
    return [f"{type(m).__name__}{marks.get(type(m), lambda m: '')(m)}" for m in head]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"norm": "all", "affine": True}, ["Linear", "BatchNorm1dγ", "ReLU", "Linear", "BatchNorm1dγ"]),
        ({"norm": "all", "bias": True}, ["Linear", "BatchNorm1dγ", "ReLU", "Linear", "BatchNorm1d"]),
        ({"norm": "hidden", "bias": True}, ["Linear", "BatchNorm1dγ", "ReLU", "Linearb"]),
        ({"norm": "hidden", "bias": False, "affine": True}, ["Linear", "BatchNorm1dγ", "ReLU", "Linear"]),
        ({"norm": "none", "bias": True, "activation": "gelu"}, ["Linearb", "GELU", "Linearb"]),
        ({"norm": "none", "bias": False}, ["Linear", "ReLU", "Linear"]),
    ],
)
def test_heads_have_variants(settings, expected):
    assert layers_of(projector(8, (16,), 4, **settings)) == expected
    head = predictor(8, 16, **settings)
    assert layers_of(head) == expected
    assert (head[0].in_features, head[0].out_features, head[-1 if "Linear" in expected[-1] else -2].out_features) == (
        8, 16, 8
    )  # fmt: skip


def test_heads_have_any_depth():
    assert layers_of(projector(8, (), 4, norm="all")) == ["Linear", "BatchNorm1d"]
    block = ["Linear", "BatchNorm1dγ", "ReLU"]
    deep = predictor(4, 16, layers=3)
    assert layers_of(deep) == [*block, *block, *block, "Linear"]
    assert [m.out_features for m in deep if isinstance(m, nn.Linear)] == [16, 16, 16, 4]


def test_a_config_builds_its_heads():
    config = ModelConfig(
        projector_hidden=(16, 12), dim=4, projector_norm="hidden", projector_bias=False, predictor_hidden=8,
        predictor_layers=2, predictor_norm="all", predictor_affine=True, predictor_bias=True, head_activation="gelu",
    )  # fmt: skip
    block = ["Linear", "BatchNorm1dγ", "GELU"]
    head, more = build_heads(config, 32)
    assert layers_of(head) == [*block, *block, "Linear"]
    assert layers_of(more) == [*block, *block, "Linear", "BatchNorm1dγ"]
    assert (head[0].in_features, head[0].out_features, head[3].out_features) == (32, 16, 12)
    affine, none = build_heads(replaced(config, {"projector_norm": "all", "projector_affine": True,
                                                 "predictor_hidden": 0}), 32)  # fmt: skip
    assert layers_of(affine) == [*block, *block, "Linear", "BatchNorm1dγ"]
    assert none is None


def test_bad_heads_are_named():
    with pytest.raises(ValueError, match="norm='batch'"):
        projector(8, (8,), 8, norm="batch")
    with pytest.raises(ValueError, match=r"sizes=\(8,\)"):
        mlp((8,), norm="all")
    with pytest.raises(ValueError, match="activation='tanh': expected 'relu' or 'gelu'"):
        predictor(8, 8, activation="tanh")
