"""What frozen features are worth."""

from sce_fast.evaluate.accuracy import Accuracy
from sce_fast.evaluate.class_labels import labelled_indices
from sce_fast.evaluate.features import FeatureFile, extract_features, load_features, pixel_features, save_features
from sce_fast.evaluate.knn import knn_accuracy, knn_top1
from sce_fast.evaluate.logistic import LinearResult, linear_accuracy, linear_top1

__all__ = [
    "Accuracy",
    "FeatureFile",
    "LinearResult",
    "extract_features",
    "knn_accuracy",
    "knn_top1",
    "labelled_indices",
    "linear_accuracy",
    "linear_top1",
    "load_features",
    "pixel_features",
    "save_features",
]
