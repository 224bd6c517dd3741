"""The model of a config: its networks, and the rows that share batch statistics."""

from collections.abc import Sequence

import torch
from torch import nn

from sce_fast.backbones import build_backbone
from sce_fast.config import ModelConfig
from sce_fast.method.batch_norm import grouped, synchronized
from sce_fast.method.heads import predictor, projector
from sce_fast.method.sce import SCE


def build_model(
    config: ModelConfig,
    *,
    backbone: nn.Module | None = None,
    shapes: Sequence[tuple[int, ...]] = (),
    ranks: int = 1,
    device: torch.device | None = None,
) -> SCE:
    """Build the model of a config, with random weights from torch's current random state.

    Args:
        backbone: a module to train in place of the config's, from its own weights: images (N, 3, H, W) or clips
            (N, 3, T, H, W) → (N, F).
        shapes: shapes of the inputs, (3, H, W) for images and (3, T, H, W) for clips; the sides are those of
            build_backbone's `sizes`.
        ranks: number of ranks that share a batch.
        device: device of the model, by default the CPU.

    Raises:
        ValueError: batch_norm_groups is not a multiple of the number of ranks, or the backbone's output is not (N, F).
    """
    device = device or torch.device("cpu")
    if backbone is None:
        sizes = [shape[-1] for shape in shapes]
        backbone = build_backbone(config.backbone, width=config.width, small_input=config.small_input, sizes=sizes)
    features = feature_dim(backbone, shapes[0] if shapes else (3, 224, 224))
    model = SCE(
        backbone,
        projector(features, config.projector_hidden, config.dim, norm=config.projector_norm),
        predictor(config.dim, config.predictor_hidden) if config.predictor_hidden else None,
        symmetric=config.symmetric,
        key_views=config.key_views,
        mutual_pass=config.mutual_pass,
    )
    if config.batch_norm == "sync" and ranks > 1:
        synchronized(model, device)
    if config.batch_norm == "shuffle":
        groups = config.batch_norm_groups
        if groups % ranks:
            raise ValueError(f"model.batch_norm_groups={groups}: expected a multiple of the {ranks} ranks")
        if groups > ranks:
            grouped(model.momentum_backbone, groups // ranks)
    return model.train().to(device)


def feature_dim(backbone: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the length F of a backbone's features: its attribute `dim`, or measured on two black inputs of a shape.

    Raises:
        ValueError: the backbone does not take such inputs, or its output is not a tensor (N, F).
    """
    if isinstance(dim := getattr(backbone, "dim", None), int):
        return dim
    weight, was_training = next(backbone.parameters(), torch.empty(0)), backbone.training
    inputs, kind = weight.new_zeros(2, *shape), "images" if len(shape) == 3 else "clips"
    try:
        with torch.no_grad():
            features = backbone.eval()(inputs)
    except Exception as error:
        name = type(backbone).__name__
        raise ValueError(f"backbone: {name} does not take {kind} {tuple(inputs.shape)}: {error}") from error
    finally:
        backbone.train(was_training)
    found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != 2:
        raise ValueError(f"backbone: {kind} {tuple(inputs.shape)} give {found}, expected features (2, F)")
    return features.shape[1]
