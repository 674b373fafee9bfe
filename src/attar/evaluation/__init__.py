"""Protocols that judge a frozen backbone; teacher and student pass through the same door."""

from attar.evaluation.confusion import mean_iou
from attar.evaluation.embedding import embed_labelled
from attar.evaluation.few_shot import FewShot, probe_few_shot
from attar.evaluation.intervals import bootstrap_interval, wilson_interval
from attar.evaluation.knn import KnnMonitor, KnnScore, few_shot_knn, knn_accuracy, knn_predict, knn_scores
from attar.evaluation.linear_probe import (
    DINOV2_CODE_LRS,
    DINOV2_PAPER_LRS,
    SYNCLR_LRS,
    ProbeHead,
    ProbeResult,
    linear_probe,
)
from attar.evaluation.logistic import LinearHead, Solver, fit_logistic, logistic_path
from attar.evaluation.logistic_probe import LogisticProbe, LogisticProtocol, choose_logistic, probe_logistic
from attar.evaluation.metrics import METRICS, Metric
from attar.evaluation.neighbours import nearest
from attar.evaluation.probe_features import ProbeFeatures
from attar.evaluation.retrieval import retrieval_recall
from attar.evaluation.robustness import mean_corruption_error, merge_classes, select_classes
from attar.evaluation.sliding import slide, windows
from attar.evaluation.zero_shot import text_classifier, zero_shot_logits
from attar.evaluation.zero_shot_monitor import ZeroShotMonitor

__all__ = [
    "DINOV2_CODE_LRS",
    "DINOV2_PAPER_LRS",
    "METRICS",
    "SYNCLR_LRS",
    "FewShot",
    "KnnMonitor",
    "KnnScore",
    "LinearHead",
    "LogisticProbe",
    "LogisticProtocol",
    "Metric",
    "ProbeFeatures",
    "ProbeHead",
    "ProbeResult",
    "Solver",
    "ZeroShotMonitor",
    "bootstrap_interval",
    "choose_logistic",
    "embed_labelled",
    "few_shot_knn",
    "fit_logistic",
    "knn_accuracy",
    "knn_predict",
    "knn_scores",
    "linear_probe",
    "logistic_path",
    "mean_corruption_error",
    "mean_iou",
    "merge_classes",
    "nearest",
    "probe_few_shot",
    "probe_logistic",
    "retrieval_recall",
    "select_classes",
    "slide",
    "text_classifier",
    "wilson_interval",
    "windows",
    "zero_shot_logits",
]
