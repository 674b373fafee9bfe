"""One error tree. Each message says the value, the rule it broke, and a remedy.

AttarError
├── UserError                 the user can mend it; the command line prints it and exits with 2
│   ├── ConfigError           a setting is unknown, missing or out of bounds
│   ├── ModelReferenceError   a model reference does not name a model
│   ├── WeightsError          a weight file does not fit its model, key by key
│   ├── ShapeError            tensors or grids that must agree do not
│   ├── DataError             a folder, file or split is missing, empty or unusable
│   │   ├── DecodeError       one file is no readable image (recorded, replaced, counted)
│   │   ├── DamagedFileError  a file is not what was written
│   │   └── MissingDatasetError  a data set of a suite is not below --data-root; it is skipped, loudly
│   ├── RunDirectoryError     the output directory is in use, another run's, or cannot be written
│   └── CheckpointError       a checkpoint is damaged or does not belong to this run
├── TrainingError             the run itself failed; exit code 1
│   ├── NonFiniteError        a loss or gradient is not finite; the weights were not changed
│   └── LostRankError         another rank has gone; it says why, or its launcher does
├── ExportError               an exported file does not say what its model says; exit code 1
└── Interrupted               SIGINT or SIGTERM; what was done is saved, exit code 130 or 143
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable
from pathlib import Path

_MOST_BESIDE = 5000  # names that are compared with a misspelt one: of a million images nobody waits for that


class AttarError(Exception):
    """Base of every error that attar raises on purpose."""

    exit_code = 1
    is_shared = False
    """Whether all ranks raise it together, with the same words; then the main rank alone prints it."""


class UserError(AttarError):
    """The input is wrong; the message tells how to mend it."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, missing or out of bounds."""


class ModelReferenceError(UserError):
    """A model reference does not name a model that can be built."""


class WeightsError(UserError):
    """A weight file does not fit its model; the message lists the keys."""


class ShapeError(UserError):
    """Tensors, grids or widths that must agree do not."""


class DataError(UserError):
    """A folder, file or split is missing, empty or unusable."""


class DecodeError(DataError):
    """One file is not a readable image."""


class DamagedFileError(DataError, ValueError):
    """A file holds no JSON, or not what was written to it; who can do without it takes it for a ValueError."""


class MissingDatasetError(DataError):
    """A data set of a suite is not there; the message says where it is expected and how to get it."""


class RunDirectoryError(UserError):
    """The output directory is in use, belongs to another run or cannot be written."""


class CheckpointError(UserError):
    """A checkpoint is damaged or belongs to another run."""


class TrainingError(AttarError):
    """The run failed while it was training."""


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite. The step is abandoned before the weights change."""

    is_shared = True


class LostRankError(TrainingError):
    """Another rank has gone. The reason is there, not here."""


class ExportError(AttarError):
    """An exported file does not say what the model says, or cannot be made; nothing is left of it."""


class Interrupted(AttarError):  # noqa: N818  (it is no error of anybody)
    """A signal asked the run to stop; the same command goes on from what was saved."""

    is_shared = True

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(signal_number, message)  # as given, so that it can be sent to other ranks
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[1])


def first_line(error: Exception) -> str:
    """What an error of a library says first, without full stop and cut when long; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def meant_beside(path: Path) -> str:
    """`" Did you mean 'x'?"` for the name in the same folder that is closest to a path's own, if that is not there."""
    try:
        beside = itertools.islice(path.parent.iterdir(), _MOST_BESIDE)
        return "" if path.exists() else did_you_mean(path.name, (entry.name for entry in beside))
    except OSError:
        return ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known word, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
