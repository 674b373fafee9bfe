"""What a page says of a run of `attar distill` or `attar distill-vl`, from the files in its directory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attar.config.files import read_settings
from attar.reports.charts import Points, chart
from attar.reports.comparison import compare, reported
from attar.reports.pictures import Findings
from attar.reports.results import PROTOCOLS, Result, protocol_of, read_results, verdict
from attar.reports.section import Section
from attar.utils.io import read_json, read_lines, sha256_file
from attar.utils.progress import duration

_SHOWN_BAD = 50


def run_section(
    run: Path,
    *,
    findings: Findings | None = None,
    missing: str = "",
    published: Sequence[str] = (),
    suites: Mapping[str, Sequence[str]] | None = None,
    price_per_hour: float | None = None,
) -> Section:
    """The section of a run; needs no model, and without `findings` no image.

    What `attar evaluate` wrote into a folder of the run is shown too.

    Args:
        run: Its directory.
        findings: What was seen with both models at hand.
        missing: Why there are none.
        published: Models whose reported figures stand beside.
        suites: As `compare` has them.
        price_per_hour: Of the machine, for the cost of training.
    """
    everything = read_results(run / "results")
    kind = protocol_of(everything)
    results = [r for r in everything if r.task.startswith(f"{kind}:")]
    judged = [r for r in everything if r not in results]
    judged += [r for folder in sorted(run.glob("*/results")) for r in read_results(folder)]
    metrics = read_lines(run / "metrics.jsonl")
    config = read_settings(run / "config.yaml")
    about = read_json(run / "about.json") if (run / "about.json").is_file() else {}
    bad_files = read_lines(run / "bad_files.jsonl")
    figures: dict[str, Result] = {r.role: r for r in results}
    series = _series(metrics, kind)
    costs = _costs(metrics, results, config, price_per_hour)
    return Section(
        kind="run",
        path=run,
        verdict=verdict(results) if "student" in figures or is_finished(run) else unfinished(metrics, config),
        figures=figures,
        series=series,
        cells={"student": str(about.get("student", config.get("student", ""))), **costs},
        content={
            "results": results,
            "judged": compare(judged, published=published, suites=suites) if judged else None,
            "published": reported(published, but={(r.task, r.metric) for r in judged}),
            "protocol": PROTOCOLS[kind],
            "curves": _curves(series, figures, kind),
            "findings": findings,
            "missing": missing,
            "costs": costs,
            "about": about,
            "provenance": provenance(run),
            "unreadable_monitor": _unreadable_of_monitor(run, figures),
            **bad_content(bad_files),
            "config": config,
        },
    )


def is_finished(run: Path) -> bool:
    """Whether the training came to its end: the last student is not written before."""
    return (run / "student-last").exists()


def unfinished(metrics: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """The verdict of a run that was stopped."""
    last = max((line["step"] for line in metrics), default=0)
    judges = ", and judges at the end." if config.get("monitor") else "; without --monitor nobody will judge it."
    return f"Not finished: the last step on record is {last:,}. The same command goes on{judges}"


def _unreadable_of_monitor(run: Path, figures: Mapping[str, Result]) -> int:
    """How many of the images to report on could not be read."""
    file = run / "monitor.json"
    if "student" not in figures or not file.is_file():
        return 0
    return max(0, len(read_json(file)["report"]["rows"]) - figures["student"].n)  # the monitor may have changed since


def _series(metrics: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Points]:
    """Loss, and what the monitor measured of the student and of its average."""
    series = {"loss": [(line["step"], line["loss"]) for line in metrics if line.get("loss") is not None]}
    for role in ("student", "ema"):
        name = f"{role}_{kind}_select"
        series[role] = [(line["step"], 100 * line[name]) for line in metrics if name in line]
    return {name: points for name, points in series.items() if points}


def _curves(series: Mapping[str, Points], figures: Mapping[str, Result], kind: str) -> list[dict[str, Any]]:
    curves = [chart("loss", {"loss": series["loss"]})] if len(series.get("loss", ())) > 1 else []
    accuracy = {role: points for role, points in series.items() if role != "loss"}
    if accuracy:
        levels = {
            role: 100 * r.selection for role, r in figures.items() if role != "student" and r.selection is not None
        }
        curves.append(chart(f"{PROTOCOLS[kind]} top-1 (%) on the selection half", accuracy, levels))
    return curves


def _costs(
    metrics: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    config: Mapping[str, Any],
    price_per_hour: float | None,
) -> dict[str, str]:
    """How much was learned from, how fast, for how long, at what price; steps that were lost and done again count once.

    A logged rate is that of all steps since the line before it.
    """
    steps = [line for line in metrics if line.get("images_per_second") and line.get("loss") is not None]
    size = config.get("batch_size")
    if not steps or not size:
        return {}
    before = [0, *(line["step"] for line in steps[:-1])]
    seconds = sum(
        (line["step"] - last) * size / line["images_per_second"] for line, last in zip(steps, before, strict=True)
    )
    costs = {
        "views": f"{steps[-1]['step'] * size:,}",
        "training": duration(seconds),
        "images a second": f"{steps[-1]['step'] * size / seconds:,.0f}",
    }
    if results:
        costs["judging at the end"] = duration(sum(r.seconds for r in results))
    return costs | price(seconds, price_per_hour)


def price(seconds: float, per_hour: float | None) -> dict[str, str]:
    """What so many seconds cost; nothing where no price is known."""
    return {} if per_hour is None else {"price": f"{per_hour * seconds / 3600:,.2f} at {per_hour:g} an hour"}


def bad_content(bad_files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first unreadable files, and how many there are."""
    return {"bad_files": bad_files[:_SHOWN_BAD], "bad_count": len(bad_files)}


def provenance(run: Path) -> dict[str, str]:
    """Who made it by which command, and what its student hashes to."""
    facts = read_json(run / "run.json")
    weights = sorted((run / "student").glob("*.safetensors"))
    return {
        **({"command": shlex.join(map(str, facts["command"]))} if facts.get("command") else {}),
        **({"run": str(facts["run_id"])} if facts.get("run_id") else {}),
        **{f"student/{file.name}": f"sha256 {sha256_file(file)}" for file in weights},
        **{name: str(value) for name, value in facts.get("versions", {}).items()},
    }
