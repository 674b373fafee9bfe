"""Several runs side by side: a table of all, and the curves of like ones in one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar.reports.charts import Points, chart
from attar.reports.results import PROTOCOLS, Result
from attar.reports.section import Section

_COLUMNS = ("student", "teacher", "random")
_METRICS = {"top1": "top-1", "mean_per_class": "mean per class", "miou": "mIoU"}
_CELLS = ("views", "training", "images a second", "price")


def overview(names: Sequence[str], sections: Sequence[Section]) -> dict[str, Any]:
    """Rows of runs that were judged or trained, and charts of those that left curves.

    Args:
        names: What to call each.
        sections: In the same order.
    """
    cells = [name for name in _CELLS if any(name in section.cells for section in sections)]
    rows = [
        {
            "number": number,
            "name": name,
            "tone": section.tone,
            "verdict": section.verdict,
            "figures": [_figure(section.figures.get(column)) for column in _COLUMNS],
            "judged": _judged(section),
            "share": _share(section),
            "cells": [section.cells.get(cell, "") for cell in cells],
        }
        for number, (name, section) in enumerate(zip(names, sections, strict=True), 1)
    ]
    return {
        "rows": rows,
        "cells": cells,
        "curves": _curves(names, sections),
        "caution": _caution(sections),
        "maps": _maps(names, sections),
    }


def _figure(result: Result | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {"value": result.value, "low": result.ci95[0], "high": result.ci95[1]}


def _share(section: Section) -> str:
    student, teacher = section.figures.get("student"), section.figures.get("teacher")
    return f"{student.value / teacher.value:.0%}" if student and teacher and teacher.value else ""


def _judged(section: Section) -> str:
    """What its figures count, as `k-NN top-1`."""
    result = section.figures.get("student") or next(iter(section.figures.values()), None)  # the first: not finished
    if result is None:
        return ""
    task = result.task.partition(":")[0]
    return f"{PROTOCOLS.get(task, task)} {_METRICS.get(result.metric, result.metric)}"


def _curves(names: Sequence[str], sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Loss of runs with one method, and the student's score of runs judged alike; a run has one colour in all."""
    styles = {name: f"run-{number}" for number, name in enumerate(names, 1)}
    frames: dict[str, dict[str, Points]] = {}
    for what in ("loss", "student"):
        for name, section in zip(names, sections, strict=True):
            if len(section.series.get(what, ())) > 1:
                kind = f"loss of {_method(section)}" if what == "loss" else f"{_judged(section)} of the student (%)"
                frames.setdefault(kind, {})[name] = section.series[what]
    return [chart(title, series, styles=styles) for title, series in frames.items() if len(series) > 1]


def _method(section: Section) -> str:
    return str(section.content.get("about", {}).get("method", "the run"))


def _maps(names: Sequence[str], sections: Sequence[Section]) -> list[dict[str, Any]]:
    """One row an image: what the teacher sees and what each student does, where they have one teacher."""
    looked = {
        name: section.content["findings"].maps
        for name, section in zip(names, sections, strict=True)
        if section.content.get("findings")
    }
    first = next(iter(looked.values()), ())
    alike = {name: maps for name, maps in looked.items() if [m.teacher for m in maps] == [m.teacher for m in first]}
    if len(alike) < 2:
        return []
    return [
        {"map": one, "students": [(name, maps[number]) for name, maps in alike.items()]}
        for number, one in enumerate(first)
    ]


def _caution(sections: Sequence[Section]) -> str:
    """What forbids comparing the figures in the table."""
    tasks = {(r.task, r.metric, r.protocol.get("images")) for s in sections for r in s.figures.values()}
    if len(tasks) > 1:
        return "They were not measured on the same images: compare within a row, not between rows."
    return ""
