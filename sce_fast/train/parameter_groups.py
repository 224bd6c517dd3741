"""Groups of parameters: which ones get weight decay, and how far their learning rate falls with their depth."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from sce_fast.config import OptimizerConfig

# Containers whose elements are the layers of a network: ResNets, R3Ds and the networks of timm.
LAYER = re.compile(r"(?:(?:layer\d+|layers|stages|blocks|res_blocks)\.\d+\.)+")
DEFAULT_EXCLUDES: Mapping[str, tuple[str, ...]] = {"sgd": (), "lars": (), "adamw": ("vectors",)}


def parameter_groups(model: nn.Module, settings: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the trainable parameters as groups for an optimizer, each with its weight_decay and lr_scale.

    Args:
        model: with layer_decay, its attribute backbone is the network with layers.
        settings: weight_decay, weight_decay_excludes and layer_decay, and the name of the optimizer.

    Raises:
        ValueError: an exclude is no part of any parameter's name, or layer_decay is below 1 and the backbone has no
            layers.

    Example:
        >>> settings = OptimizerConfig(name="adamw", base_learning_rate=5e-4, weight_decay=0.05)
        >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(model, settings)]
        [(42, 0.05), (80, 0.0)]
    """
    excludes = settings.weight_decay_excludes
    excluded = _excluded(model, DEFAULT_EXCLUDES[settings.name] if excludes is None else excludes)
    scales = {} if settings.layer_decay == 1 else layer_scales(model, settings.layer_decay)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays, scale = name not in excluded, scales.get(name, 1.0)
            decay = settings.weight_decay if decays else 0.0
            group = {"params": [], "weight_decay": decay, "lr_scale": scale}
            groups.setdefault((decays, scale), group)["params"].append(parameter)
    return list(groups.values())


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate for each parameter of the backbone, by its name in the model.

    The parameters before the first layer (patch and position embeddings, a stem) count as a layer of their own, and so
    do those after the last one (a final normalisation), whose factor is 1. Each layer has the factor of the next one
    times decay (Clark et al., ICLR 2020; BEiT, MAE).

    Raises:
        ValueError: the backbone has no layers.

    Example:
        >>> layer_scales(model, 0.5)  # with a backbone of two blocks
        {'backbone.cls_token': 0.125, 'backbone.blocks.0.norm1.weight': 0.25, …, 'backbone.norm.weight': 1.0}
    """
    backbone = model.get_submodule("backbone")
    names = [name for name, _ in backbone.named_parameters()]
    found = [match[0] if (match := LAYER.match(name)) else None for name in names]
    numbers = {layer: number for number, layer in enumerate(dict.fromkeys(filter(None, found)), 1)}
    if not numbers:
        raise ValueError(
            f"optimizer.layer_decay={decay}: expected 1 with a {type(backbone).__name__}, in which no "
            "parameter's name begins with the layers of a transformer, such as blocks.0"
        )
    after, first = len(numbers) + 1, next(i for i, layer in enumerate(found) if layer)
    depths = [numbers[layer] if layer else (0 if i < first else after) for i, layer in enumerate(found)]
    return {f"backbone.{name}": decay ** (after - depth) for name, depth in zip(names, depths, strict=True)}


def _excluded(model: nn.Module, excludes: tuple[str, ...]) -> set[str]:
    """Return the names of the parameters without weight decay."""
    parameters = dict(model.named_parameters())
    kinds = {
        "vectors": {name for name, parameter in parameters.items() if parameter.dim() <= 1},
        "bias": {name for name in parameters if name.rpartition(".")[2] == "bias"},
        "norm": {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        },
    }
    found: set[str] = set()
    for exclude in excludes:
        named = kinds.get(exclude, {name for name in parameters if exclude in name})
        if not named and exclude not in kinds:
            raise ValueError(
                f"optimizer.weight_decay_excludes={exclude!r}: expected vectors, bias, norm, or a part of a "
                "parameter's name; no parameter has it"
            )
        found |= named
    return found
