"""Table and page of a transfer: teacher and student after each stage, what each stage cost, how they learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attar.config.files import read_settings
from attar.reports.charts import chart
from attar.reports.page import write_report
from attar.reports.pictures import Findings
from attar.reports.results import Result, percent, read_results
from attar.reports.run import bad_content, price, provenance
from attar.reports.section import Section
from attar.utils.io import read_json, read_lines, write_json
from attar.utils.progress import duration

STAGES = {
    "adapt": "teacher, adapted",
    "transfer": "student after transfer",
    "finetune": "student after finetuning",
    "scratch": "student without transfer",
}
"""What each stage leaves, in their order."""

HEADINGS = {
    "top1": "top-1",
    "mean_per_class": "mean/class",
    "miou": "mIoU",
    "class_accuracy": "mean/class",
}
"""Headings of figures."""

Costs = Mapping[str, Any]
"""What `compute.json` holds."""


def transfer_rows(results: Sequence[Result], costs: Costs | None = None) -> list[list[str]]:
    """Heading and a row for each stage and part of the labelled images.

    Args:
        results: Two metrics for each; a figure's heading is its metric's.
        costs: Columns of views, multiply-adds and seconds are empty without.
    """
    first, second = dict.fromkeys(r.metric for r in sorted(results, key=lambda r: list(HEADINGS).index(r.metric)))
    by_part = {(r.protocol["stage"], r.protocol["part"], r.metric): r for r in results}
    rows = [["", "on", HEADINGS[first], "95 % interval", HEADINGS[second], "views", "GMACs", "seconds"]]
    for stage, title in STAGES.items():
        cost = (costs or {}).get("stages", {}).get(stage)
        spent = [f"{cost['images']:,}", gmacs(cost["macs"]), f"{cost['seconds']:,.0f}"] if cost else [""] * 3
        for part in ("val", "test"):
            found = by_part.get((stage, part, first))
            if found is not None:
                interval = f"{percent(found.ci95[0])} – {percent(found.ci95[1])}"
                other = percent(by_part[stage, part, second].value)
                rows.append([title, part, percent(found.value), interval, other, *spent])
    return rows


def write_transfer_page(run: Path, verdict: str) -> Path:
    """Write `report.html` of a finished run and return its path; needs the run's files alone.

    Args:
        run: Directory of the run.
        verdict: Whether it helped, in a sentence; it is kept for later pages.
    """
    write_json(run / "about.json", _about(run) | {"verdict": verdict})
    return write_report(run / "report.html", [transfer_section(run)])


def transfer_section(
    run: Path, *, findings: Findings | None = None, missing: str = "", price_per_hour: float | None = None
) -> Section:
    """The section of a finished run.

    Args:
        run: Its directory.
        findings: What was seen with teacher and student at hand.
        missing: Why there are none.
        price_per_hour: Of the machine, for the cost of all stages.
    """
    results = read_results(run / "results")
    compute = read_json(run / "compute.json")
    rows = transfer_rows(results, compute)
    config = read_settings(run / "config.yaml")
    bad_files = [line for stage in STAGES for line in read_lines(run / stage / "bad_files.jsonl")]
    about = _about(run)
    seconds = sum(stage["seconds"] for stage in compute["stages"].values())
    costs = {"training": duration(seconds)} | price(seconds, price_per_hour)
    return Section(
        kind="transfer",
        path=run,
        verdict=about.pop("verdict", "What came of it is in the table: this run was made before verdicts were kept."),
        figures=_headline(results),
        cells=costs,
        content={
            "heading": rows[0],
            "rows": rows[1:],
            "costs": costs,
            "curves": _curves(run, results),
            "classes": _by_class(results),
            "stages": STAGES,
            "config": config,
            "findings": findings,
            "missing": missing,
            "about": about,
            "provenance": provenance(run),
            **bad_content(bad_files),
        },
    )


def _about(run: Path) -> dict[str, Any]:
    """Where the student comes from, as the run wrote it down, and its verdict."""
    file = run / "about.json"
    about: dict[str, Any] = read_json(file) if file.is_file() else {}
    return about


def _headline(results: Sequence[Result]) -> dict[str, Result]:
    """The first metric, where it is reported: of student, adapted teacher, and the student that was not taught."""
    roles = {"finetune": "student", "adapt": "teacher", "scratch": "random"}
    part = "test" if any(r.protocol["part"] == "test" for r in results) else "val"
    metric = next((name for name in HEADINGS if any(r.metric == name for r in results)), None)
    return {
        roles[r.protocol["stage"]]: r
        for r in results
        if (r.protocol["part"], r.metric) == (part, metric) and r.protocol["stage"] in roles
    }


def _curves(run: Path, results: Sequence[Result]) -> list[dict[str, Any]]:
    """The first metric on validation images over steps, and the losses of each stage."""
    lines = {stage: read_lines(run / stage / "metrics.jsonl") for stage in STAGES}
    metric = next(name for name in HEADINGS if any(r.metric == name for r in results))
    adapted = [r for r in results if (r.protocol["stage"], r.protocol["part"], r.metric) == ("adapt", "val", metric)]
    teacher = {"teacher": 100 * adapted[0].value} if adapted else {}
    curves = []
    for source, stages in {"the teacher": ("transfer",), "the labels": ("finetune", "scratch")}.items():
        scores = {
            stage: [(line["step"], 100 * line["val"]) for line in lines[stage] if line.get("val") is not None]
            for stage in stages
        }
        scores = {stage: points for stage, points in scores.items() if len(points) > 1}
        if scores:
            curves.append(chart(f"{HEADINGS[metric]} (%) on val while it learns from {source}", scores, teacher))
    for stage in ("transfer", "finetune"):
        losses = [(line["step"], line["loss"]) for line in lines[stage] if line.get("loss") is not None]
        if len(losses) > 1:
            curves.append(chart(f"loss, {stage}", {stage: losses}))
    return curves


def _by_class(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """IoU of each class after each stage, on the images that are reported; empty where it is not known."""
    with_iou = [r for r in results if "iou" in r.details]
    part = "test" if any(r.protocol["part"] == "test" for r in with_iou) else "val"
    table: dict[str, dict[str, str]] = {}
    for r in with_iou:
        if r.protocol["part"] == part:
            for name, value in r.details["iou"].items():
                table.setdefault(name, {})[r.protocol["stage"]] = "" if value is None else percent(value)
    return table


def gmacs(macs: float) -> str:
    """Billions of multiply-adds, with two digits where they are few: a small student's are less than one.

    Example:
        >>> gmacs(3.2e12), gmacs(4.6e7)
        ('3,200', '0.046')
    """
    return f"{macs / 1e9:,.0f}" if macs >= 1e10 else f"{macs / 1e9:.2g}"
