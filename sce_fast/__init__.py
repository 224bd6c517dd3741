"""sce_fast: self-supervised pretraining with soft contrastive targets (SCE)."""

from sce_fast.loss import SCELoss, SCEStatistics, sce_loss
from sce_fast.model import SCE
from sce_fast.queue import KeyQueue

__all__ = ["SCE", "KeyQueue", "SCELoss", "SCEStatistics", "sce_loss"]
