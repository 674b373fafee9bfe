"""Who reaches what: every task's figures of student, teacher and random student beside each other and the published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from attar.reports.published import published_of
from attar.reports.results import Mode, Result, Role

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


def comparison_table(
    results: Sequence[Result], *, published: Sequence[str] = (), suites: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Markdown: a row for each task, a column for each role, mode and model, a column for each published model.

    A model is named where several have the same role. Shares are per cent, with the 95 % interval in brackets; depth is
    in metres.

    Args:
        results: Any number of result files' contents.
        published: Models whose reported figures stand beside, as `attar.reports.published` names them.
        suites: Name and tasks of suites; those with all their tasks measured get a row with the mean.
    """
    columns = _columns(results)
    heading = ["task", "metric", *_headings(columns), *(f"{name} ¹" for name in published)]
    lines = [_line(heading), "|" + "---|" * len(heading)]
    for task, metric in dict.fromkeys((r.task, r.metric) for r in results):
        own = {_Column.of(r): r for r in results if (r.task, r.metric) == (task, metric)}
        reported = [published_of(name, task, metric) for name in published]
        figures = [show(own[column]) if column in own else "" for column in columns]
        lines.append(_line([task, metric, *figures, *(_figure(p.value, metric) if p else "" for p in reported)]))
    for suite, tasks in (suites or {}).items():
        means = [_mean([r for r in results if _Column.of(r) == column], tasks) for column in columns]
        if any(means):
            reported = [published_of(name, suite, "mean") for name in published]
            lines.append(
                _line([f"**{suite}**", "mean", *means, *(_figure(p.value, "mean") if p else "" for p in reported)])
            )
    return "\n".join(lines) + _footnote(results, published)


def _columns(results: Sequence[Result]) -> list[_Column]:
    """Each once: roles in order, and of each first what is honest."""
    found = dict.fromkeys(map(_Column.of, results))
    return sorted(found, key=lambda column: (_ROLES.index(column.role), column.weights, _MODES.index(column.mode)))


def _headings(columns: Sequence[_Column]) -> list[str]:
    def is_alone(column: _Column) -> bool:
        return len({other.weights for other in columns if other.role == column.role}) == 1

    names = [column.role if is_alone(column) else f"{column.role} {column.weights}" for column in columns]
    return [f"{name}, {column.mode}" for name, column in zip(names, columns, strict=True)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


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


def _footnote(results: Sequence[Result], published: Sequence[str]) -> str:
    """Where the published figures come from, and in what their protocols differ."""
    tasks = dict.fromkeys((r.task, r.metric) for r in results)
    found = [line for name in published for task in tasks if (line := published_of(name, *task)) is not None]
    if not found:
        return ""
    sources = dict.fromkeys(f"{line.model}: {line.source}" for line in found)
    notes = dict.fromkeys(f"{line.model}, {line.task}: {line.note}" for line in found if line.note)
    return f"\n\n¹ As published. {'; '.join([*sources, *notes])}."
