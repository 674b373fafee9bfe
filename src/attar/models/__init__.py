"""Backbones: one adapter for every model, strict readers of weight files, heads."""

from attar.models.backbone import Backbone, Preprocess, Provenance, cache_sized
from attar.models.classifier import LinearClassifier, load_classifier
from attar.models.heads import ClassificationHead, ProjectionHead
from attar.models.licences import Licence, licence_named, terms_of
from attar.models.load import load_backbone
from attar.models.projection import with_projection
from attar.models.small_text import small_text_tower
from attar.models.task_model import ClassHead, TaskModel
from attar.models.text import TextTower
from attar.models.two_towers import TwoTowers, load_text_tower, load_two_towers

__all__ = [
    "Backbone",
    "ClassHead",
    "ClassificationHead",
    "Licence",
    "LinearClassifier",
    "Preprocess",
    "ProjectionHead",
    "Provenance",
    "TaskModel",
    "TextTower",
    "TwoTowers",
    "cache_sized",
    "licence_named",
    "load_backbone",
    "load_classifier",
    "load_text_tower",
    "load_two_towers",
    "small_text_tower",
    "terms_of",
    "with_projection",
]
