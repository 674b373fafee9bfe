"""Files that other tools read."""

from attar.export.student import library_of, model_card, write_student

__all__ = ["library_of", "model_card", "write_student"]
