"""`report.html`: one self-contained page for a run, or for several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from attar.data.files import without_credentials
from attar.reports.overview import overview
from attar.reports.run import run_section
from attar.reports.section import Section, titles
from attar.utils.io import write_text
from attar.utils.plain import plain


def write_page(run: Path) -> Path:
    """Write a run's page and return its path. Needs no GPU and no model, only the run's files."""
    return write_report(run / "report.html", [run_section(run)])


def write_report(path: Path, sections: Sequence[Section], *, title: str | None = None) -> Path:
    """Write a page of one section, or of several under a table of all, and return its path.

    Args:
        path: Of the page.
        sections: In order.
        title: By default the directory's name, or how many there are.
    """
    names = titles(list(sections))
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=title or (names[0] if len(sections) == 1 else f"{len(sections)} side by side"),
            sections=list(zip(names, sections, strict=True)),
            overview=overview(names, sections) if len(sections) > 1 else None,
        )
    )
    write_text(path, page)
    return path


def _harmless(value: object) -> object:
    """A template's value without characters that turn what stands around them; macros' HTML passes as it is."""
    return plain(value) if type(value) is str else value


def is_own_page(path: Path) -> bool:
    """Whether a file is a page that attar wrote."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return '<meta name="generator" content="attar">' in file.read(2000)


def environment() -> Environment:
    """Templates of pages, which escape what they are given and miss nothing silently."""
    templates = Environment(
        loader=PackageLoader("attar.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["public"] = lambda value: without_credentials(str(value))
    templates.filters["percent"] = lambda value: f"{100 * value:.1f}"
    templates.filters["count"] = lambda value: f"{value:,}"
    return templates
