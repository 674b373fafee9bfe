"""A slice of the campaign of `benchmarks/faults`: runs that are killed, files that are damaged, disks that are full.

Seconds of each group; recorded campaigns are the same groups with other numbers. A failure prints the trial, its seed
and what was seen; `python -m benchmarks.faults --group GROUP --only TRIAL --seed SEED` repeats it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.faults import SLICE

from small_runs import environment

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)  # of which a machine without other work needs a tenth
LEAST = {"save": 20, "hostile": 10, "planted": 2}  # trials of the groups that find out themselves how many there are


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What came out, by group: one process does them all, so that models are imported once and forked often."""
    folder = tmp_path_factory.mktemp("faults")
    words = ["--slice", "--seed", "1", "--folder", str(folder / "runs"), "--results", str(folder / "records.json")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words],
        cwd=ROOT,
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-4000:]
    return {record["group"]: record for record in json.loads((folder / "records.json").read_text())}


@pytest.mark.parametrize("group", SLICE)
def test_nothing_is_lost_and_nothing_silently_wrong(group, records):
    record = records[group]
    assert record["failed"] == [], record["command"]
    assert record["trials"] >= LEAST.get(group, SLICE[group])
    assert set(record["verdicts"]) <= {"recovered", "refused"}
