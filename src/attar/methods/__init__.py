"""One paper, one file."""

from attar.methods.base import Method
from attar.methods.proteus import Proteus

__all__ = ["Method", "Proteus"]
