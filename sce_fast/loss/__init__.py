"""The SCE loss, its backends and the queue of past keys."""

from sce_fast.loss.api import SCELoss, SCEStatistics, sce_loss
from sce_fast.loss.queue import KeyQueue

__all__ = ["KeyQueue", "SCELoss", "SCEStatistics", "sce_loss"]
