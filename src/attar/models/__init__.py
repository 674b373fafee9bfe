"""Backbones: one adapter for every model, strict readers of weight files, heads."""

from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.classifier import LinearClassifier, load_classifier
from attar.models.heads import ClassificationHead, ProjectionHead
from attar.models.load import load_backbone

__all__ = [
    "Backbone",
    "ClassificationHead",
    "LinearClassifier",
    "Preprocess",
    "ProjectionHead",
    "Provenance",
    "load_backbone",
    "load_classifier",
]
