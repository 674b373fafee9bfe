"""Files that other tools read."""

from attar.export.student import library_of, model_card, write_student
from attar.export.task import read_task_model, with_classifier, write_task_model

__all__ = ["library_of", "model_card", "read_task_model", "with_classifier", "write_student", "write_task_model"]
