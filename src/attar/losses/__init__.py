"""Pure functions on tensors; no model is known here."""

from attar.losses.classification import cross_entropy, kl_divergence
from attar.losses.contrastive import info_nce
from attar.losses.features import Criterion, token_distance
from attar.losses.scores import Vectors, distance_preserving, pseudo_vision_language, score_kl, vision_language
from attar.losses.segmentation import pixel_cross_entropy, pixel_kl_divergence

__all__ = [
    "Criterion",
    "Vectors",
    "cross_entropy",
    "distance_preserving",
    "info_nce",
    "kl_divergence",
    "pixel_cross_entropy",
    "pixel_kl_divergence",
    "pseudo_vision_language",
    "score_kl",
    "token_distance",
    "vision_language",
]
