"""Layers for plain implementations of networks: functions of a state dict, by the published names of its tensors."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Weights(Mapping[str, Tensor]):
    """A state dict that notes which of its tensors are read, so that a test sees that none is left out."""

    def __init__(self, network: nn.Module) -> None:
        self._tensors = network.state_dict()
        self.unread = {name for name in self._tensors if not name.endswith("num_batches_tracked")}

    def __getitem__(self, name: str) -> Tensor:
        self.unread.discard(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def away_from_the_start(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return a network in float64 and eval mode whose vectors are random; blocks that start as identities are not."""
    torch.manual_seed(seed)
    for tensor in network.double().eval().state_dict().values():
        if tensor.is_floating_point() and tensor.dim() == 1:
            tensor.uniform_(0.5, 1.5)
    return network


def batch_norm(weights: Mapping[str, Tensor], x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    mean, variance, gamma, beta = (weights[f"{name}.{key}"].view(-1, 1, 1, 1) for key in keys)
    return (x - mean) / (variance + eps).sqrt() * gamma + beta


def conv(weights: Mapping[str, Tensor], x: Tensor, name: str, *, stride: Any = 1, groups: int = 1) -> Tensor:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    weight = weights[f"{name}.weight"]
    padding = [side // 2 for side in weight.shape[2:]]
    return F.conv3d(x, weight, stride=stride, padding=padding, groups=groups)


def mean(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)
