"""Backbones: one adapter for every model, strict readers of weight files, heads."""

from attar.models.backbone import Backbone, Preprocess, Source
from attar.models.heads import ProjectionHead
from attar.models.load import load_backbone

__all__ = ["Backbone", "Preprocess", "ProjectionHead", "Source", "load_backbone"]
