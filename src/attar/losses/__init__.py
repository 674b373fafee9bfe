"""Pure functions on tensors; no model is known here."""

from attar.losses.classification import cross_entropy, kl_divergence
from attar.losses.contrastive import info_nce
from attar.losses.features import Criterion, token_distance
from attar.losses.segmentation import pixel_cross_entropy, pixel_kl_divergence

__all__ = [
    "Criterion",
    "cross_entropy",
    "info_nce",
    "kl_divergence",
    "pixel_cross_entropy",
    "pixel_kl_divergence",
    "token_distance",
]
