"""Images from files to views: the host decides everything, DALI executes it."""

from sce_fast.data.augment import AUGMENTATIONS, Augmentation, EvaluationView
from sce_fast.data.index import ImageIndex, index_images
from sce_fast.data.loader import Batch, TrainingLoader, evaluation_batches

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "Batch",
    "EvaluationView",
    "ImageIndex",
    "TrainingLoader",
    "evaluation_batches",
    "index_images",
]
