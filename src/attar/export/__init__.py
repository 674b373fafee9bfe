"""Files that other tools read."""

from attar.export.student import model_card, write_student

__all__ = ["model_card", "write_student"]
