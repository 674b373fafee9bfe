"""Figures that papers and their authors' repositories report, each with its source (`assets/published.csv`)."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from attar.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Published:
    """One reported figure.

    Attributes:
        model: As its authors call it.
        task: The task of `attar evaluate` that comes closest, or a suite for the mean over its tasks.
        metric: Name of the figure; in [0, 1], but for `rmse` (metres) and `mce`, which may exceed 1.
        value: The figure.
        source: Where it is reported.
        note: How its protocol differs from the others of this task; empty where it does not.
    """

    model: str
    task: str
    metric: str
    value: float
    source: str
    note: str


@cache
def published() -> tuple[Published, ...]:
    """All reported figures, in the order of the file."""
    text = (files("attar.reports") / "assets" / "published.csv").read_text(encoding="utf-8")
    return tuple(_read(line) for line in csv.DictReader(text.splitlines()))


def _read(line: dict[str, str]) -> Published:
    value = float(line["value"])
    return Published(line["model"], line["task"], line["metric"], value, line["source"], line["note"])


def published_of(model: str, task: str, metric: str) -> Published | None:
    """What is reported for a model and a task, the first source going before the others."""
    same = (line for line in published() if (line.model, line.task, line.metric) == (model, task, metric))
    return next(same, None)


def known_models(names: Iterable[str]) -> list[str]:
    """The names as the file has them, given in any case.

    Raises:
        ConfigError: If nothing is reported for a name.
    """
    known = {line.model.lower(): line.model for line in published()}
    found = []
    for name in names:
        if name.lower() not in known:
            raise ConfigError(
                f"no published figures for '{name}'.{did_you_mean(name, known.values())}"
                f" Known: {', '.join(dict.fromkeys(known.values()))}."
            )
        found.append(known[name.lower()])
    return found
