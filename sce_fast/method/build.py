"""The model of a config: its networks, and the rows that share batch statistics."""

from typing import cast

import torch

from sce_fast.backbones import build_backbone
from sce_fast.config import ModelConfig
from sce_fast.method.batch_norm import grouped, synchronized
from sce_fast.method.heads import predictor, projector
from sce_fast.method.sce import SCE


def build_model(config: ModelConfig, *, ranks: int = 1, device: torch.device | None = None) -> SCE:
    """Build the model of a config, with random weights from torch's current random state.

    Args:
        ranks: number of ranks that share a batch.
        device: device of the model, by default the CPU.

    Raises:
        ValueError: batch_norm_groups is not a multiple of the number of ranks.
    """
    device = device or torch.device("cpu")
    backbone = build_backbone(config.backbone, width=config.width, small_input=config.small_input)
    model = SCE(
        backbone,
        projector(cast(int, backbone.dim), config.projector_hidden, config.dim, norm=config.projector_norm),
        predictor(config.dim, config.predictor_hidden) if config.predictor_hidden else None,
        symmetric=config.symmetric,
        key_views=config.key_views,
    )
    if config.batch_norm == "sync" and ranks > 1:
        synchronized(model, device)
    if config.batch_norm == "shuffle":
        groups = config.batch_norm_groups
        if groups % ranks:
            raise ValueError(f"model.batch_norm_groups={groups}: expected a multiple of the {ranks} ranks")
        if groups > ranks:
            grouped(model.momentum_backbone, groups // ranks)
    return model.to(device)
