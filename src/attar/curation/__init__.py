"""Vectors in, manifests out: pools of embedded images, and what is chosen from them."""

from attar.curation.pool import Pool

__all__ = ["Pool"]
