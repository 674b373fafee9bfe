"""Protocols that judge a frozen backbone; teacher and student pass through the same door."""

from attar.evaluation.confusion import mean_iou
from attar.evaluation.embedding import embed_labelled
from attar.evaluation.intervals import bootstrap_interval, wilson_interval
from attar.evaluation.knn import KnnMonitor, KnnScore, few_shot_knn, knn_accuracy, knn_predict, knn_scores
from attar.evaluation.linear import LinearHead, LinearProbe, choose_logistic, mean_per_class_accuracy
from attar.evaluation.linear_probe import (
    DINOV2_CODE_LRS,
    DINOV2_PAPER_LRS,
    SYNCLR_LRS,
    ProbeHead,
    ProbeResult,
    linear_probe,
)
from attar.evaluation.metrics import METRICS, Metric
from attar.evaluation.neighbours import nearest
from attar.evaluation.probe_features import ProbeFeatures
from attar.evaluation.segmentation import LinearSegmentation, open_annotated

__all__ = [
    "DINOV2_CODE_LRS",
    "DINOV2_PAPER_LRS",
    "METRICS",
    "SYNCLR_LRS",
    "KnnMonitor",
    "KnnScore",
    "LinearHead",
    "LinearProbe",
    "LinearSegmentation",
    "Metric",
    "ProbeFeatures",
    "ProbeHead",
    "ProbeResult",
    "bootstrap_interval",
    "choose_logistic",
    "embed_labelled",
    "few_shot_knn",
    "knn_accuracy",
    "knn_predict",
    "knn_scores",
    "linear_probe",
    "mean_iou",
    "mean_per_class_accuracy",
    "nearest",
    "open_annotated",
    "wilson_interval",
]
