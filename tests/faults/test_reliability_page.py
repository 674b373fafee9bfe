"""What `docs/reliability.md` says is shown by tests and campaigns that are there, and by figures that were recorded."""

import ast
import re
from pathlib import Path

import pytest
from benchmarks.faults.recorded import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reliability.md").read_text()
ROWS = [line for line in PAGE.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
GROUPS = set(
    re.findall(r'^    "(\w+)": \w+\.\w+,$', (ROOT / "benchmarks/faults/__main__.py").read_text(), re.MULTILINE)
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_line_is_shown_by_something_that_is_there(row):
    shown_by = re.findall(r"`([^`]+)`", row.split("|")[3])
    assert shown_by
    for one in shown_by:
        if one.startswith("--group "):
            assert one.removeprefix("--group ") in GROUPS
            continue
        file, _, name = one.partition("::")
        body = ast.parse((ROOT / file).read_text()).body
        names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        names |= {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
        assert not name or name in names


def test_the_figures_are_those_that_were_recorded():
    assert len(GROUPS) > 10
    assert table() in PAGE, "python -m benchmarks.faults.recorded puts it there"
