"""One paper, one file; and one for each baseline that a paper is judged against."""

from attar.methods.base import Method
from attar.methods.hint import Hint
from attar.methods.logits import LogitDistillation
from attar.methods.proteus import Proteus
from attar.methods.soft_logits import SoftLogits
from attar.methods.supervised import Supervised

__all__ = ["Hint", "LogitDistillation", "Method", "Proteus", "SoftLogits", "Supervised"]
