"""What frozen features are worth."""

from sce_fast.evaluate.features import FeatureFile, extract_features, load_features, pixel_features, save_features
from sce_fast.evaluate.knn import knn_top1
from sce_fast.evaluate.linear import linear_top1

__all__ = [
    "FeatureFile",
    "extract_features",
    "knn_top1",
    "linear_top1",
    "load_features",
    "pixel_features",
    "save_features",
]
