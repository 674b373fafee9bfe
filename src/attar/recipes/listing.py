"""`attar evaluate --list` and `--table`: what there is to measure, and what was measured. Neither needs a model."""

from __future__ import annotations

from pathlib import Path

from attar.errors import DataError
from attar.evaluation.datasets import list_datasets
from attar.evaluation.datasets.listing import Listing
from attar.evaluation.suite import DENSE, PROTOCOLS, SUITES, means
from attar.reports import comparison_table, read_results
from attar.reports.published import known_models


def list_tasks(data_root: Path) -> str:
    """Protocols, suites, and every data set: where it lies, or where it is expected and how to get it."""
    lines = ["protocols, to be followed by :DATASET or :DIR"]
    lines += [
        f"  {name:14}{(protocol.__doc__ or '').splitlines()[0]}" for name, protocol in {**PROTOCOLS, **DENSE}.items()
    ]
    lines.append("suites")
    lines += [f"  {name:14}{', '.join(map(str, tasks))}" for name, tasks in SUITES.items()]
    found = list_datasets(data_root)
    lines.append(f"data sets in {data_root}" if any(one.folder for one in found) else f"no data set in {data_root}")
    lines += [f"{_head(one)} {one.folder}" for one in found if one.folder]
    if any(one.folder is None for one in found):
        lines.append(f"missing data sets, the folder each is looked for in below {data_root}, and how to get it")
        lines += [f"{_head(one)} {one.expected}" for one in found if one.folder is None]
    return "\n".join(lines)


def _head(listing: Listing) -> str:
    return f"  {listing.dataset.name:20}{listing.dataset.title}, {listing.dataset.metric}:"


def table_of(out: Path, published: str = "") -> str:
    """Markdown of all results in a directory, with the figures of published models, between commas, beside.

    Raises:
        DataError: If there are no results.
        ConfigError: If nothing is published of a model of that name.
    """
    results = read_results(out / "results")
    if not results:
        raise DataError(f"{out} holds no results. Give the --out of an attar evaluate, or the directory of a run.")
    return comparison_table(results, published=known_models(published) if published else [], suites=means())
