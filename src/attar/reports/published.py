"""Figures that papers and their authors' repositories report, each with its source (`assets/published.csv`)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
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


def published_of(model: str, task: str, metric: str) -> tuple[Published, ...]:
    """All that is reported for a model and a task: papers differ from each other, and one may name two protocols."""
    return tuple(line for line in published() if (line.model, line.task, line.metric) == (model, task, metric))


def tasks_reported(models: Sequence[str]) -> list[tuple[str, str]]:
    """(task, metric) of all that is reported for any of these models, in the order of the file."""
    return list(dict.fromkeys((line.task, line.metric) for line in published() if line.model in models))


def known_models(words: str) -> list[str]:
    """Models as the file has them, from names between commas in any case; names that hold a comma are found too.

    Raises:
        ConfigError: If nothing is reported for a name.

    Example:
        >>> known_models("proteus-s/14, DINOv2-S/14")
        ['Proteus-S/14', 'DINOv2-S/14']
    """
    known = {line.model.lower(): line.model for line in published()}
    found, rest = [], words.split(",")
    while rest:
        names = {end: ",".join(rest[:end]).strip() for end in range(len(rest), 0, -1)}  # the longest first
        end = next((end for end, name in names.items() if name.lower() in known), None)
        if end is None:
            raise ConfigError(
                f"no published figures for '{names[1]}'.{did_you_mean(names[1], known.values())}"
                f" Known: {'; '.join(dict.fromkeys(known.values()))}."
            )
        found.append(known[names[end].lower()])
        rest = rest[end:]
    return found
