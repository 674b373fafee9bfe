"""One paper, one file; and one for each baseline that a paper is judged against."""

from attar.methods.base import Method
from attar.methods.contrastive import Contrastive
from attar.methods.cosine import Cosine
from attar.methods.dime_fm import DimeFm, ImageTargets, cached_targets, online_targets, stored_targets
from attar.methods.hint import Hint
from attar.methods.logits import LogitDistillation
from attar.methods.proteus import Proteus
from attar.methods.soft_logits import SoftLogits
from attar.methods.supervised import Supervised
from attar.methods.task_transfer import TaskTransfer
from attar.methods.tasks import TASKS, Task
from attar.methods.teacher import TokenKind

__all__ = [
    "TASKS",
    "Contrastive",
    "Cosine",
    "DimeFm",
    "Hint",
    "ImageTargets",
    "LogitDistillation",
    "Method",
    "Proteus",
    "SoftLogits",
    "Supervised",
    "Task",
    "TaskTransfer",
    "TokenKind",
    "cached_targets",
    "online_targets",
    "stored_targets",
]
