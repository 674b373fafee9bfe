"""Tasks that `attar transfer` knows, by name."""

from attar.config import TransferConfig
from attar.config.transfer import TaskKind
from attar.recipes.tasks.base import FittedHead, OpenedTask, Rows
from attar.recipes.tasks.classification import Classification
from attar.recipes.tasks.segmentation import Segmentation

__all__ = ["TASK_KINDS", "Classification", "FittedHead", "OpenedTask", "Rows", "Segmentation", "open_task"]

TASK_KINDS: dict[TaskKind, type[OpenedTask]] = {"classification": Classification, "segmentation": Segmentation}


def open_task(config: TransferConfig, *, workers: int) -> OpenedTask:
    """The task of a configuration with its labelled images."""
    return TASK_KINDS[config.task].open(config, workers=workers)
