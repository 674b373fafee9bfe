"""`report.html`: one self-contained page for a run, from the files in its directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attar.config.files import read_settings
from attar.data.files import without_credentials
from attar.reports.results import PROTOCOLS, Result, protocol_of, read_results, verdict
from attar.utils.io import read_json, read_lines, write_text

_WIDTH, _HEIGHT = 560, 200  # of the drawing, which the page stretches


def write_page(run: Path) -> Path:
    """Write the page and return its path. Needs no GPU and no model, only the run's files."""
    results = read_results(run / "results")
    metrics = read_lines(run / "metrics.jsonl")
    config = read_settings(run / "config.yaml")
    page = (
        environment()
        .get_template("run.html")
        .render(
            title=run.name,
            verdict=verdict(results),
            results=results,
            protocol=PROTOCOLS[protocol_of(results)],
            curves=_curves(metrics, results),
            config=config,
            about=read_json(run / "about.json") if (run / "about.json").is_file() else {},
            run_facts=read_json(run / "run.json"),
            bad_files=read_lines(run / "bad_files.jsonl")[:50],
        )
    )
    target = run / "report.html"
    write_text(target, page)
    return target


def environment() -> Environment:
    """Templates of pages, which escape what they are given and miss nothing silently."""
    templates = Environment(
        loader=PackageLoader("attar.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["public"] = lambda value: without_credentials(str(value))
    templates.filters["percent"] = lambda value: f"{100 * value:.1f}"
    return templates


def _curves(metrics: list[dict[str, Any]], results: Sequence[Result]) -> list[dict[str, Any]]:
    """Loss and what the monitor measured over steps, as polylines in a fixed frame."""
    losses = [(line["step"], line["loss"]) for line in metrics if line.get("loss") is not None]
    curves = [chart("loss", {"loss": losses})] if len(losses) > 1 else []
    kind = protocol_of(results)
    accuracy = {
        role: [
            (line["step"], 100 * line[f"{role}_{kind}_select"]) for line in metrics if f"{role}_{kind}_select" in line
        ]
        for role in ("student", "ema")
    }
    accuracy = {role: points for role, points in accuracy.items() if points}
    if accuracy:
        levels: dict[str, float] = {
            r.role: 100 * r.selection for r in results if r.role != "student" and r.selection is not None
        }
        curves.append(chart(f"{PROTOCOLS[kind]} top-1 (%) on the selection half", accuracy, levels))
    return curves


def chart(
    title: str, series: Mapping[str, list[tuple[int, float]]], levels: Mapping[Any, float] | None = None
) -> dict[str, Any]:
    """Lines over steps and level lines, between the round numbers around them."""
    levels = levels or {}
    ticks = ticks_around([value for points in series.values() for _, value in points] + [*levels.values()])
    last = max(step for points in series.values() for step, _ in points)

    def x(step: int) -> float:
        return round(_WIDTH * step / last, 1)

    def y(value: float) -> float:
        return round(_HEIGHT * (ticks[-1] - value) / (ticks[-1] - ticks[0]), 1)

    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return {
        "title": title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "last": f"{last:,}",
        "ticks": [{"y": y(tick), "value": f"{tick:,.{decimals}f}"} for tick in reversed(ticks)],
        "lines": [
            {
                "name": name,
                "value": f"{points[-1][1]:,.{decimals + 1}f}",
                "points": " ".join(f"{x(step)},{y(value)}" for step, value in points),
                "end": (x(points[-1][0]), y(points[-1][1])),
            }
            for name, points in series.items()
        ],
        "levels": [
            {"name": name, "value": f"{value:,.{decimals + 1}f}", "y": y(value)} for name, value in levels.items()
        ],
    }


def ticks_around(values: Sequence[float]) -> list[float]:
    """Round numbers at equal distances, two to seven of them, the outer ones around all values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    if first == last:  # down where there is room: no share lies above 100 %
        first, last = (first - 1, last) if first > 0 else (first, last + 1)
    return [number * step for number in range(first, last + 1)]
