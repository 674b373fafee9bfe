"""`python -m benchmarks.faults.recorded`: the table of recorded campaigns, put into `docs/reliability.md`."""

from __future__ import annotations

import json
import re
from pathlib import Path

_RESULTS = Path(__file__).parents[1] / "results"
_PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_CHECKED = {
    "kills": "random kills of a training run, 1 to 3 each",
    "writes": "killed, or the disk full, at each place where a run touches the disk",
    "verbs": "random kills of the other verbs",
    "embedding": "an embedding that is killed many times",
    "damage": "damaged checkpoints",
    "signals": "SIGTERM or SIGINT in each phase",
    "two": "two commands in one directory",
    "numbers": "numbers that are not finite",
    "ranks": "a rank killed or stopped",
    "hostile": "hostile files",
    "fuzz": "mutated files into every reader",
    "mutations": "protections removed, of which each must be noticed",
    "cost": "cost of safety",
}


def table() -> str:
    """Markdown: of each group its newest record."""
    newest = {}
    for path in sorted(_RESULTS.glob("*-faults-*.json")):  # by date
        newest[path.stem.partition("-faults-")[2]] = path
    lines = ["| campaign | command | trials | passed | date |", "|---|---|---|---|---|"]
    for group, checked in _CHECKED.items():
        if group in newest:
            record = json.loads(newest[group].read_text())
            words = record["command"].removeprefix("python -m benchmarks.faults ")
            passed = record["trials"] - len(record["failed"])
            date = f"[{record['date']}](../benchmarks/results/{newest[group].name})"
            lines.append(f"| {checked} | `{words}` | {record['trials']:,} | {passed:,} | {date} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it where the page has that of before."""
    before = re.search(r"^\| campaign .*?(?=\n\n)", text := _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert before is not None, f"{_PAGE} has no table of campaigns"
    _PAGE.write_text(text.replace(before[0], table()))
    print(table())


if __name__ == "__main__":
    main()
