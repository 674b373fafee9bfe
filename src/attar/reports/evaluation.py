"""What a page says of a directory of `attar evaluate`: every task's figures beside each other and the published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attar.reports.comparison import compare
from attar.reports.results import caution, read_results
from attar.reports.section import Section


def evaluation_section(
    folder: Path, *, published: Sequence[str] = (), suites: Mapping[str, Sequence[str]] | None = None
) -> Section:
    """The section of a directory with `results/*.json`; arguments as `compare`."""
    results = read_results(folder / "results")
    tasks = len({result.task for result in results})
    roles = ", ".join(dict.fromkeys(result.role for result in results))
    return Section(
        kind="evaluation",
        path=folder,
        verdict=f"{tasks} task{'s' * (tasks > 1)}, judged: {roles}. {caution(results)}".rstrip(),
        content={"table": compare(results, published=published, suites=suites), "results": results},
    )
