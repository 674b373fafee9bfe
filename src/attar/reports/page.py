"""`report.html`: one self-contained page for a run, from the files in its directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attar.config.files import read_settings
from attar.data.files import without_credentials
from attar.reports.results import caution, read_results, verdict
from attar.utils.io import read_json, read_lines, write_text

_WIDTH, _HEIGHT = 560, 200
_COLOURS = {"student": "#0b7a75", "ema": "#d08700", "loss": "#3b5bdb"}


def write_page(run: Path) -> Path:
    """Write the page and return its path. Needs no GPU and no model, only the run's files."""
    results = read_results(run / "results")
    metrics = read_lines(run / "metrics.jsonl")
    config = read_settings(run / "config.yaml")
    page = (
        _environment()
        .get_template("run.html")
        .render(
            title=run.name,
            verdict=verdict(results),
            results=results,
            caution=caution(results),
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


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("attar.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["public"] = lambda value: without_credentials(str(value))
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    return environment


def _curves(metrics: list[dict[str, Any]], results: Sequence[Any]) -> list[dict[str, Any]]:
    """Loss and k-NN over steps as polylines in a fixed frame."""
    losses = [(line["step"], line["loss"]) for line in metrics if line.get("loss") is not None]
    curves = [_chart("loss", {"loss": losses})] if len(losses) > 1 else []
    accuracy = {
        role: [(line["step"], line[f"{role}_knn_select"]) for line in metrics if f"{role}_knn_select" in line]
        for role in ("student", "ema")
    }
    accuracy = {role: points for role, points in accuracy.items() if points}
    if accuracy:
        levels = {r.role: r.selection for r in results if r.role != "student" and r.selection is not None}
        curves.append(
            _chart("k-NN top-1 (%) on the selection half", accuracy, levels, floor=0.0, ceiling=1.0, unit=100.0)
        )
    return curves


def _chart(
    title: str,
    series: dict[str, list[tuple[float, float]]],
    levels: dict[str, float] | None = None,
    *,
    floor: float | None = None,
    ceiling: float | None = None,
    unit: float = 1.0,
) -> dict[str, Any]:
    values = [value for points in series.values() for _, value in points]
    low, high = min(values) if floor is None else floor, max(values) if ceiling is None else ceiling
    last = max(step for points in series.values() for step, _ in points)

    def y(value: float) -> float:
        return round(_HEIGHT - _HEIGHT * (value - low) / ((high - low) or 1.0), 1)

    return {
        "title": title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "low": f"{unit * low:.3g}",
        "high": f"{unit * high:.3g}",
        "last": f"{last:,}",
        "lines": [
            {
                "name": name,
                "colour": _COLOURS[name],
                "points": " ".join(f"{round(_WIDTH * step / last, 1)},{y(value)}" for step, value in points),
                "end": (round(_WIDTH * points[-1][0] / last, 1), y(points[-1][1])),
            }
            for name, points in series.items()
        ],
        "levels": [
            {"name": name, "y": y(value), "value": f"{100 * value:.1f}"} for name, value in (levels or {}).items()
        ],
    }
