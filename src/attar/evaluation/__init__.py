"""Protocols that judge a frozen backbone; teacher and student pass through the same door."""

from attar.evaluation.intervals import wilson_interval
from attar.evaluation.knn import KnnMonitor, knn_predict

__all__ = ["KnnMonitor", "knn_predict", "wilson_interval"]
