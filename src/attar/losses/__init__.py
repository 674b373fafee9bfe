"""Pure functions on tensors; no model is known here."""

from attar.losses.features import Criterion, token_distance

__all__ = ["Criterion", "token_distance"]
