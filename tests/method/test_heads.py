"""Projector and predictor have the published layers."""

import pytest
from torch import nn

from sce_fast.method.heads import mlp, predictor, projector


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


def test_bad_heads_are_named():
    with pytest.raises(ValueError, match="norm='batch'"):
        projector(8, (8,), 8, norm="batch")
    with pytest.raises(ValueError, match=r"sizes=\(8,\)"):
        mlp((8,), hidden_norm=True)
