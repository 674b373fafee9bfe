"""Backbones: one adapter for every model, strict readers of weight files, heads."""

from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.classifier import LinearClassifier, load_classifier
from attar.models.heads import ClassificationHead, ProjectionHead
from attar.models.load import load_backbone
from attar.models.task_model import ClassHead, TaskModel
from attar.models.text import TextTower, load_text_tower

__all__ = [
    "Backbone",
    "ClassHead",
    "ClassificationHead",
    "LinearClassifier",
    "Preprocess",
    "ProjectionHead",
    "Provenance",
    "TaskModel",
    "TextTower",
    "load_backbone",
    "load_classifier",
    "load_text_tower",
]
