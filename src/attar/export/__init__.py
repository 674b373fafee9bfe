"""Files that other tools read."""

from attar.export.student import card_end, library_of, model_card, write_student
from attar.export.task import builds_itself, read_task_model, with_classifier, write_task_model
from attar.export.tower_costs import Costs, Times, costs_table, tower_costs
from attar.export.two_towers import check_ships, two_towers_card, write_two_towers

__all__ = [
    "Costs",
    "Times",
    "builds_itself",
    "card_end",
    "check_ships",
    "costs_table",
    "library_of",
    "model_card",
    "read_task_model",
    "tower_costs",
    "two_towers_card",
    "with_classifier",
    "write_student",
    "write_task_model",
    "write_two_towers",
]
