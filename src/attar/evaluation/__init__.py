"""Protocols that judge a frozen backbone; teacher and student pass through the same door."""

from attar.evaluation.confusion import mean_iou
from attar.evaluation.embedding import embed_labelled
from attar.evaluation.intervals import bootstrap_interval, wilson_interval
from attar.evaluation.knn import KnnMonitor, knn_accuracy, knn_predict
from attar.evaluation.linear import LinearHead, LinearProbe, choose_logistic, mean_per_class_accuracy
from attar.evaluation.metrics import METRICS, Metric
from attar.evaluation.segmentation import LinearSegmentation, open_annotated

__all__ = [
    "METRICS",
    "KnnMonitor",
    "LinearHead",
    "LinearProbe",
    "LinearSegmentation",
    "Metric",
    "bootstrap_interval",
    "choose_logistic",
    "embed_labelled",
    "knn_accuracy",
    "knn_predict",
    "mean_iou",
    "mean_per_class_accuracy",
    "open_annotated",
    "wilson_interval",
]
