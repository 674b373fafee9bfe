"""A part of a page: one run, one set or one evaluation, as its template shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from attar.reports.charts import Points
from attar.reports.results import Result


@dataclass(frozen=True)
class Section:
    """What a page says of one directory.

    Attributes:
        kind: Which template shows it: `section_KIND.html`.
        path: The directory.
        verdict: What came out, in a sentence.
        content: What the template takes.
        figures: Student, teacher and what the student is compared with, for the table of several runs.
        series: Loss and scores over steps by name, for the charts of several runs.
        cells: More columns of that table.
    """

    kind: Literal["run", "transfer", "set", "evaluation"]
    path: Path
    verdict: str
    content: Mapping[str, Any]
    figures: Mapping[str, Result] = field(default_factory=dict)
    series: Mapping[str, Points] = field(default_factory=dict)
    cells: Mapping[str, str] = field(default_factory=dict)

    @property
    def tone(self) -> Literal["good", "bad", "open", "plain"]:
        """How the page colours the verdict: as what it says, or plainly where nothing was to be proven."""
        if self.kind in ("set", "evaluation"):
            return "plain"
        if self.verdict.startswith("It helped"):
            return "good"
        return "bad" if self.verdict.startswith(("It did not help", "It harmed")) else "open"


def titles(sections: list[Section]) -> list[str]:
    """Names of the directories, as long as it takes to tell them apart.

    Example:
        >>> [Section("run", Path(path), "", {}) for path in ("a/x", "b/x")] and titles(
        ...     [Section("run", Path(path), "", {}) for path in ("a/x", "b/x")]
        ... )
        ['a/x', 'b/x']
    """
    for length in range(1, max(len(section.path.parts) for section in sections) + 1):
        names = ["/".join(section.path.parts[-length:]) for section in sections]
        if len(set(names)) == len(names):
            return names
    return names
