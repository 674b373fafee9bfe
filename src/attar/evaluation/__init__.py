"""Protocols that judge a frozen backbone; teacher and student pass through the same door."""

from attar.evaluation.embedding import embed_labelled
from attar.evaluation.intervals import wilson_interval
from attar.evaluation.knn import KnnMonitor, knn_accuracy, knn_predict
from attar.evaluation.linear import LinearHead, LinearProbe, choose_logistic, mean_per_class_accuracy
from attar.evaluation.segmentation import LinearSegmentation, mean_iou, open_annotated

__all__ = [
    "KnnMonitor",
    "LinearHead",
    "LinearProbe",
    "LinearSegmentation",
    "choose_logistic",
    "embed_labelled",
    "knn_accuracy",
    "knn_predict",
    "mean_iou",
    "mean_per_class_accuracy",
    "open_annotated",
    "wilson_interval",
]
