"""Table and page of a study: what each way of making a model came to, and what it cost."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.config import StudyConfig
from attar.config.files import to_yaml
from attar.reports.charts import ticks_around
from attar.reports.page import environment
from attar.reports.transfer import HEADINGS, gmacs
from attar.utils.io import write_text
from attar.utils.plain import in_cell

_SHIPPED = "finetune"  # the stage whose student counts
_FEWEST_SEEDS = 3  # that mean and deviation say something of (spec task_transfer §1.7: three or more)
_WIDTH, _HEIGHT = 560.0, 260.0  # of the drawing, which the page stretches
_COLOURS = ("#3b5bdb", "#0b7a75", "#d08700", "#b3261e", "#7048a8", "#5c7080", "#c2417c", "#2b8a3e")

NOT_PROVEN = "Not proven"
"""How the sentence of a number of labels begins whose rows may as well stand in another order."""

Run = Mapping[str, Any]
"""Figures of one run, as `cell.json` has them."""


@dataclass(frozen=True)
class Spread:
    """Values of several seeds.

    Attributes:
        values: One a seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Of the sample; None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, *, sign: str = "") -> str:
        """Mean and deviation in per cent."""
        around = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:{sign}.1f}{around}"


@dataclass(frozen=True)
class Study:
    """Figures of all runs that are done.

    Attributes:
        runs: Those that were asked for now in the order of cells, then rows; then those that were asked for before.
    """

    runs: tuple[Run, ...]

    @property
    def rows(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(run["row"] for run in self.runs))

    @property
    def titles(self) -> dict[str, str]:
        """What each row is called, by its name."""
        return _short(self.rows, _shown)

    @property
    def places(self) -> dict[str, str]:
        """What each place that sets were fetched from is called, by its reference."""
        return _short(list(dict.fromkeys(place for row in self.rows for place in self.sources(row))), _place)

    @property
    def labels(self) -> list[int]:
        """Numbers of labelled images of each class, the smallest first."""
        return sorted({run["labels"] for run in self.runs})

    @property
    def metrics(self) -> list[str]:
        """Names of the figures; the first is the one that is told."""
        return sorted(self.runs[0]["scores"][_SHIPPED], key=list(HEADINGS).index)

    def of(self, row: str, labels: int | None = None) -> list[Run]:
        """A row's runs, with so many labels or with all numbers of them."""
        return [run for run in self.runs if run["row"] == row and labels in (None, run["labels"])]

    def score(self, row: str, labels: int, *, metric: str | None = None, stage: str = _SHIPPED) -> Spread | None:
        """A figure after a stage, over the seeds; None where the row has no such stage."""
        name = metric or self.metrics[0]
        found = tuple(run["scores"][stage][name] for run in self.of(row, labels) if stage in run["scores"])
        return Spread(found) if found else None

    def gain(self, row: str, labels: int, *, over: str) -> Spread | None:
        """Differences to another row, seed by seed."""
        name = self.metrics[0]
        other = {run["seed"]: run["scores"][_SHIPPED][name] for run in self.of(over, labels)}
        found = tuple(
            run["scores"][_SHIPPED][name] - other[run["seed"]] for run in self.of(row, labels) if run["seed"] in other
        )
        return Spread(found) if found and row != over else None

    def teacher(self, labels: int) -> Spread | None:
        """Of the adapted teacher: the same in every row that has one."""
        row = next((row for row in self.rows if self.score(row, labels, stage="adapt")), None)
        return self.score(row, labels, stage="adapt") if row else None

    def sources(self, row: str) -> dict[str, float]:
        """Share of each place in what the row's sets fetched from the pool, over all its runs."""
        counts: dict[str, int] = {}
        for run in self.of(row):
            for source in run["set"]["sources"] if run["set"] else ():
                counts[source["place"]] = counts.get(source["place"], 0) + source["fetched"]
        total = sum(counts.values())
        return {place: count / total for place, count in counts.items()} if total else {}


def study_table(study: Study) -> str:
    """Markdown: rows with figures for each number of labels and what a run cost on average; then sources."""
    parts = [_markdown(_headings(study), _rows(study)), _legend(study)]
    if before := _before_finetuning(study):
        parts.append(_markdown(_before_headings(study), before))
    fetched = {row: study.sources(row) for row in study.rows if study.sources(row)}
    if fetched:
        lines = [
            [study.titles[row], *(f"{100 * shares.get(place, 0.0):.0f} %" for place in study.places)]
            for row, shares in fetched.items()
        ]
        parts.append(_markdown(["fetched from", *study.places.values()], lines))
    return "\n\n".join(parts) + "\n"


def _headings(study: Study) -> list[str]:
    metric = HEADINGS[study.metrics[0]]
    figures = [f"{metric}, {labels} a class" for labels in study.labels]
    over = [f"over scratch, {labels} a class" for labels in study.labels] if "scratch" in study.rows else []
    return ["row", *figures, *over, "student steps", "GMACs", "seconds"]


def _rows(study: Study) -> list[list[str]]:
    lines = []
    for row in study.rows:
        scores = [_text(study.score(row, labels)) for labels in study.labels]
        if "scratch" in study.rows:
            scores += [_text(study.gain(row, labels, over="scratch"), sign="+") for labels in study.labels]
        runs = study.of(row)
        costs = [statistics.fmean(run[name] for run in runs) for name in ("student_steps", "macs", "seconds")]
        lines.append([study.titles[row], *scores, f"{costs[0]:,.0f}", gmacs(costs[1]), f"{costs[2]:,.0f}"])
    teachers = [_text(study.teacher(labels)) for labels in study.labels]
    if any(teachers):
        lines.append(["teacher, adapted", *teachers, *[""] * (len(lines[0]) - 1 - len(teachers))])
    return lines


def _before_headings(study: Study) -> list[str]:
    return ["before finetuning", *(f"{HEADINGS[study.metrics[0]]}, {labels} a class" for labels in study.labels)]


def _before_finetuning(study: Study) -> list[list[str]]:
    """Figures of the students that had not seen a label yet; rows that teach no task have none."""
    found = {row: [_text(study.score(row, labels, stage="transfer")) for labels in study.labels] for row in study.rows}
    return [[study.titles[row], *scores] for row, scores in found.items() if any(scores)]


def _short(names: Sequence[str], shorten: Callable[[str], str]) -> dict[str, str]:
    """Short names, and whole ones where two would be called alike.

    Example:
        >>> _short(["task:/a/set", "task:/b/set", "task:/b/rest"], _shown)
        {'task:/a/set': 'task:/a/set', 'task:/b/set': 'task:/b/set', 'task:/b/rest': 'task:rest'}
    """
    times = Counter(shorten(name) for name in names)
    return {name: name if times[shorten(name)] > 1 else shorten(name) for name in names}


def _shown(row: str) -> str:
    """A row's name without the folders that lead to its place.

    Example:
        >>> _shown("task:/data/sets/ideal"), _shown("task:random")
        ('task:ideal', 'task:random')
    """
    pretrain, colon, rest = row.partition(":")
    return f"{pretrain}{colon}{Path(rest).name}" if colon else row


def _place(place: str) -> str:
    """A place's name without the folders that lead to it."""
    return Path(place).name or place


def _text(spread: Spread | None, *, sign: str = "") -> str:
    return "" if spread is None else spread.text(sign=sign)


def _legend(study: Study) -> str:
    run = study.runs[0]
    counts = {len(study.of(row, labels)) for row in study.rows for labels in study.labels} - {0}
    seeds = f"{max(counts)} seeds" if len(counts) == 1 else f"{min(counts)} to {max(counts)} seeds, as far as they ran"
    return (
        f"Per cent on {run['images']:,} {run['part']} images, mean and standard deviation over {seeds};"
        " differences are taken seed by seed. Steps, multiply-adds and measured seconds are those of a run, teacher"
        " included, validation left out."
    )


def _markdown(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ([*map(in_cell, cells)] for cells in (heading, ["---"] * len(heading), *lines))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def study_sentence(study: Study) -> str:
    """What comes out, for each number of labels: whose mean is highest, what it gains, and who is not told apart."""
    return " ".join(_sentence(study, labels) for labels in study.labels)


def _sentence(study: Study, labels: int) -> str:
    scores = {row: score for row in study.rows if (score := study.score(row, labels))}
    best = max(scores, key=lambda row: scores[row].mean)
    score, gain = scores[best], study.gain(best, labels, over="scratch")
    more = "" if gain is None else f", {gain.text(sign='+')} points over scratch"
    doubts = []
    if score.deviation is None:
        kind = "figure, of one seed,"
        doubts.append("what another seed would give is not known")
    else:
        kind = "mean,"
        least = score.mean - score.deviation
        near = [row for row, other in scores.items() if row != best and other.mean + (other.deviation or 0.0) >= least]
        if near:
            doubts.append(f"{_and([study.titles[row] for row in near])} not told apart from it (deviations overlap)")
        if len(score.values) < _FEWEST_SEEDS:
            doubts.append(f"{len(score.values)} seeds are few, take {_FEWEST_SEEDS} at least")
    said = f"ith {labels} labelled images a class {study.titles[best]} has the highest {kind} {score.text()} %{more}"
    return f"{NOT_PROVEN}: w{said}; {'; '.join(doubts)}." if doubts else f"W{said}."


def _and(names: Sequence[str]) -> str:
    """Names as the subject of a sentence, with its verb.

    Example:
        >>> _and(["hint"]), _and(["hint", "cosine", "task"])
        ('hint is', 'hint, cosine and task are')
    """
    *others, last = names
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def write_study_page(path: Path, study: Study, config: StudyConfig) -> None:
    """Write the self-contained page; needs the figures alone."""
    colours = {study.titles[row]: _COLOURS[number % len(_COLOURS)] for number, row in enumerate(study.rows)}
    page = (
        environment()
        .get_template("study.html")
        .render(
            title="Study",
            sentence=study_sentence(study),
            tone="plain" if NOT_PROVEN in study_sentence(study) else "",
            headings=_headings(study),
            rows=_rows(study),
            legend=_legend(study),
            before=[_before_headings(study), *_before_finetuning(study)],
            colours=colours,
            chart=_chart(study, colours),
            places=study.places,
            sources={study.titles[row]: shares for row in study.rows if (shares := study.sources(row))},
            settings=to_yaml(config),
        )
    )
    write_text(path, page)


def _chart(study: Study, colours: Mapping[str, str]) -> dict[str, Any]:
    """Each row's mean over the numbers of labels as a line, and a dot for each seed."""
    metric = study.metrics[0]
    values = [100 * run["scores"][_SHIPPED][metric] for run in study.runs]
    teachers = {labels: spread for labels in study.labels if (spread := study.teacher(labels))}
    marks = ticks_around([*values, *(100 * spread.mean for spread in teachers.values())])
    y = _scale(marks[0], marks[-1])
    lines = []
    for number, row in enumerate(study.rows):
        spreads = [(x, study.score(row, labels)) for labels, x in _columns(study)]
        shift = 7 * (number - (len(study.rows) - 1) / 2)  # rows stand beside each other
        dots = [(x + shift, y(100 * value)) for x, spread in spreads if spread for value in spread.values]
        means = [(x + shift, y(100 * spread.mean)) for x, spread in spreads if spread]
        name = study.titles[row]
        lines.append({"name": name, "colour": colours[name], "dots": dots, "means": means})
    return {
        "title": f"{HEADINGS[metric]} (%)",
        "width": _WIDTH,
        "height": _HEIGHT,
        "ticks": [{"y": y(mark), "value": f"{mark:g}"} for mark in reversed(marks)],
        "columns": [{"x": x, "name": f"{labels} a class"} for labels, x in _columns(study)],
        "lines": lines,
        "teacher": [(x, y(100 * teachers[labels].mean)) for labels, x in _columns(study) if labels in teachers],
    }


def _columns(study: Study) -> list[tuple[int, float]]:
    """Where each number of labels stands."""
    return [(labels, _WIDTH * (2 * place + 1) / (2 * len(study.labels))) for place, labels in enumerate(study.labels)]


def _scale(low: float, high: float) -> Callable[[float], float]:
    return lambda value: round(_HEIGHT * (high - value) / (high - low), 1)
