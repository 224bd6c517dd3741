"""Evaluation of frozen features. Importing this package loads no DALI."""

from sce_fast.evaluate.accuracy import Accuracy, majority_accuracy
from sce_fast.evaluate.average_precision import eleven_point_precision, interpolated_precision
from sce_fast.evaluate.class_labels import labelled_indices
from sce_fast.evaluate.features import FeatureFile, extract_features, load_features, pixel_features, save_features
from sce_fast.evaluate.knn import knn_accuracy, knn_top1
from sce_fast.evaluate.logistic import LogisticResult, logistic_accuracy, logistic_top1
from sce_fast.evaluate.results import EvaluationResult
from sce_fast.evaluate.retrieval import Retrieval, chance_recall, retrieve
from sce_fast.evaluate.store import FeatureStore
from sce_fast.evaluate.svm import SVMEvaluation
from sce_fast.evaluate.transfer import TransferSet, transfer_score

__all__ = [
    "Accuracy",
    "EvaluationResult",
    "FeatureFile",
    "FeatureStore",
    "LogisticResult",
    "Retrieval",
    "SVMEvaluation",
    "TransferSet",
    "chance_recall",
    "eleven_point_precision",
    "extract_features",
    "interpolated_precision",
    "knn_accuracy",
    "knn_top1",
    "labelled_indices",
    "load_features",
    "logistic_accuracy",
    "logistic_top1",
    "majority_accuracy",
    "pixel_features",
    "retrieve",
    "save_features",
    "transfer_score",
]
