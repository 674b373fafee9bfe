"""Who reaches what: every task's figures of student, teacher and random student beside each other and the published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean

from attar.reports.published import published_of, tasks_reported
from attar.reports.results import Mode, Result, Role
from attar.utils.plain import in_cell

_ROLES: tuple[Role, ...] = ("student", "model", "teacher", "random")
_MODES: tuple[Mode, ...] = ("honest", "paper")


@dataclass(frozen=True)
class _Column:
    """Figures of one model in one role and mode."""

    role: Role
    mode: Mode
    weights: str

    @classmethod
    def of(cls, result: Result) -> _Column:
        weights = result.source.get("fingerprint") or result.source.get("sha256") or ""
        return cls(result.role, result.mode, f"{result.model} {weights[:8]}")


@dataclass(frozen=True)
class Comparison:
    """A table of figures.

    Attributes:
        heading: Of the columns: task, metric, then whose figures.
        rows: A cell a column, for each task and metric, then for each suite that is complete.
        suites: Names of tasks that are suites, whose figure is a mean.
        sources: Where published figures are reported, each with the mark that points to it.
        unknown: Models asked for of which nothing is published on these tasks.
        has_intervals: Whether some figures are measured here.
    """

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    suites: tuple[str, ...]
    sources: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    has_intervals: bool = False


def comparison_table(
    results: Sequence[Result], *, published: Sequence[str] = (), suites: Mapping[str, Sequence[str]] | None = None
) -> str:
    """`compare` as Markdown."""
    table = compare(results, published=published, suites=suites)
    heading = [in_cell(name) for name in table.heading]
    rows = [
        [f"**{task}**" if task in table.suites else in_cell(task), *map(in_cell, cells)] for task, *cells in table.rows
    ]
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    lines = [_line(row, widths) for row in (heading, ["-" * width for width in widths], *rows)]
    notes = "\n\n" + "  \n".join(table.sources) if table.sources else ""
    told = f"\n\nNothing is published on these tasks of: {'; '.join(table.unknown)}." if table.unknown else ""
    return "\n".join(lines) + notes + told


def compare(
    results: Sequence[Result], *, published: Sequence[str] = (), suites: Mapping[str, Sequence[str]] | None = None
) -> Comparison:
    """A row for each task, a column for each role, mode and model, a column for each published model.

    A model is named where several have the same role. Shares are per cent, with the 95 % interval in brackets; depth is
    in metres.

    Args:
        results: Any number of result files' contents.
        published: Models whose reported figures stand beside, as `attar.reports.published` names them. Where papers
            differ, all their figures do, each with its source.
        suites: Name and tasks of suites; those with all their tasks measured get a row with the mean.
    """
    columns, sources = _columns(results), _Sources()
    measured = list(dict.fromkeys((r.task, r.metric) for r in results))
    means = {
        suite: [_mean([r for r in results if _Column.of(r) == column], tasks) for column in columns]
        for suite, tasks in (suites or {}).items()
    }
    means = {suite: values for suite, values in means.items() if any(values)}
    asked = [*measured, *((suite, "mean") for suite in means)]
    unknown = [name for name in published if not any(any(published_of(name, *row)) for row in asked)]
    published = [name for name in published if name not in unknown]
    rows = []
    for task, metric in measured:
        own = {_Column.of(r): r for r in results if (r.task, r.metric) == (task, metric)}
        figures = [show(own[column]) if column in own else "" for column in columns]
        rows.append((task, metric, *figures, *(sources.cell(name, task, metric) for name in published)))
    for suite, values in means.items():
        rows.append((suite, "mean", *values, *(sources.cell(name, suite, "mean") for name in published)))
    heading = ("task", "metric", *_headings(columns), *published)
    return Comparison(heading, tuple(rows), tuple(means), tuple(sources.lines()), tuple(unknown), has_intervals=True)


def reported(models: Sequence[str], *, but: Set[tuple[str, str]] = frozenset()) -> Comparison:
    """What papers report of models, a column each.

    Args:
        models: As `attar.reports.published` names them.
        but: (task, metric) of rows to leave out.
    """
    sources = _Sources()
    asked = [row for row in tasks_reported(models) if row not in but]
    rows = [(*row, *(sources.cell(model, *row) for model in models)) for row in asked]
    return Comparison(("task", "metric", *models), tuple(rows), (), tuple(sources.lines()))


class _Sources:
    """Cells of published figures, each marked with where it is reported, and the footnotes that the marks point to."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}

    def cell(self, model: str, task: str, metric: str) -> str:
        """All figures that are reported: none goes before the others, and equal ones stand once."""
        marks: dict[str, list[str]] = {}
        for line in published_of(model, task, metric):
            source = f"{line.source}: {line.note}" if line.note else line.source
            mark = self.marks.setdefault(source, f"[{len(self.marks) + 1}]")
            marks.setdefault(_figure(line.value, metric), []).append(mark)
        return "; ".join(f"{figure} {''.join(found)}" for figure, found in marks.items())

    def lines(self) -> list[str]:
        """One for each source, and for each protocol in it that differs."""
        return [f"{mark} {source}." for source, mark in self.marks.items()]


def _columns(results: Sequence[Result]) -> list[_Column]:
    """Each once: roles in order, and of each first what is honest."""
    found = dict.fromkeys(map(_Column.of, results))
    return sorted(found, key=lambda column: (_ROLES.index(column.role), column.weights, _MODES.index(column.mode)))


def _headings(columns: Sequence[_Column]) -> list[str]:
    def is_alone(column: _Column) -> bool:
        return len({other.weights for other in columns if other.role == column.role}) == 1

    names = [column.role if is_alone(column) else f"{column.role} {column.weights}" for column in columns]
    return [f"{name}, {column.mode}" for name, column in zip(names, columns, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"


def show(result: Result) -> str:
    """A figure and its interval, in per cent or metres."""
    low, high = (_figure(value, result.metric) for value in result.ci95)
    return f"{_figure(result.value, result.metric)} ({low}–{high})"


def _figure(value: float, metric: str) -> str:
    return f"{value:.3f}" if metric == "rmse" else f"{100 * value:.1f}"


def _mean(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """Plain mean over a suite's tasks, nothing where one is missing."""
    values = {result.task: result.value for result in results}
    return f"{100 * fmean(values[task] for task in tasks):.1f}" if set(tasks) <= set(values) else ""
