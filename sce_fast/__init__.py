"""sce_fast: self-supervised pretraining with soft contrastive targets (SCE)."""

from sce_fast.loss.api import SCELoss, SCEStatistics, sce_loss
from sce_fast.loss.queue import KeyQueue
from sce_fast.method.sce import SCE

__all__ = ["SCE", "KeyQueue", "SCELoss", "SCEStatistics", "sce_loss"]
