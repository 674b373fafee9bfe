"""Mutations: each piece of the protection is taken out, and a group of faults, or a test, must notice."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults.damage import damaged_checkpoints
from benchmarks.faults.harness import Trial
from benchmarks.faults.kills import at_one_save

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutation:
    """A line of the package, what takes its place, and what must turn red.

    Attributes:
        removes: What protection that is.
        file: Below `src/attar`.
        line: As it stands there.
        instead: As it stands in the copy.
        notices: Arguments of a group of faults, or of pytest.
    """

    removes: str
    file: str
    line: str
    instead: str
    notices: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "manifest",
        "train/checkpoint.py",
        "names = [] if said == found else ",
        "names = [] if said else ",
        ("--group", "damage", "--trials", "40"),
    ),
    Mutation(
        "hash",
        "train/checkpoint.py",
        '"sha256": sha256_file(path)}',
        '"sha256": ""}',
        ("--group", "damage", "--trials", "40"),
    ),
    Mutation(
        "rename",
        "train/checkpoint.py",
        "        with new_folder(target) as temporary:",
        "        target.mkdir(parents=True, exist_ok=True)\n        for temporary in (target,):",
        ("--group", "writes", "--trials", "60"),
    ),
    Mutation(
        "fsync",
        "utils/io.py",
        "        os.fsync(descriptor)",
        "        pass",
        ("tests/utils/test_io.py",),
    ),
    Mutation(
        "fsync of what a folder holds",
        "utils/io.py",
        "                    sync_file(path)\n",
        "",
        ("tests/utils/test_io.py",),
    ),
    Mutation(
        "fsync of the folder above",
        "utils/io.py",
        "            sync_folder(target.parent)\n",
        "",
        ("tests/train/test_checkpoint.py",),
    ),
    Mutation(
        "rename before a checkpoint is removed",
        "utils/io.py",
        "        os.rename(path, aside)",
        "        aside = path",
        ("tests/train/test_checkpoint.py",),
    ),
    Mutation(
        "lock",
        "utils/run_directory.py",
        "            if not take_lock(file):",
        "            if False:",
        ("--group", "two", "--trials", "6"),
    ),
    Mutation(
        "guard of the loss",
        "train/loop.py",
        "    if not math.isfinite(loss):",
        "    if False:",
        ("--group", "numbers", "--trials", "7"),
    ),
    Mutation(
        "guard of the gradient",
        "train/loop.py",
        "    if not (math.isfinite(largest) and math.isfinite(smallest)):",
        "    if False:",
        ("--group", "numbers", "--trials", "7"),
    ),
)


def removed_protection(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """Manifest, hash, rename, sync, lock, guards: one by one they are taken out of a copy of the package, and the group
    of faults or the tests that rest on it must find something wrong, which they do not in the package as it is (check
    k)."""
    for number, mutation in enumerate(MUTATIONS):
        if only not in (None, number):
            continue
        began = time.monotonic()
        found = [
            _findings(_copy(folder, mutation if is_mutated else None), mutation.notices) for is_mutated in (False, True)
        ]
        problem = "it is red without the mutation. " if found[0] else ""
        problem += "" if found[1] else "nothing noticed it."
        verdict = "wrong" if problem else "recovered"
        yield Trial(number, f"without the {mutation.removes}", verdict, problem, time.monotonic() - began)


def _copy(folder: Path, mutation: Mutation | None) -> Path:
    """A copy of the package, one line of it changed."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(_ROOT / "src" / "attar", copy / "attar")
    if mutation is not None:
        file = copy / "attar" / mutation.file
        text = file.read_text()
        assert text.count(mutation.line) == 1, f"{mutation.file} has not the one line {mutation.line!r}"
        file.write_text(text.replace(mutation.line, mutation.instead))
    return copy


def _findings(package: Path, notices: tuple[str, ...]) -> int:
    """How many trials were wrong, or tests failed, with a package; anything else that ends them is an error here."""
    tests = ["-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *(["-m", "benchmarks.faults"] if notices[0].startswith("--") else tests), *notices],
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    counted = re.search(r'"wrong": (\d+)|(\d+) failed', done.stdout)
    if done.returncode not in (0, 1) or bool(counted) != bool(done.returncode):
        raise AssertionError(f"{notices} ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-1000:]}")
    return int(counted[1] or counted[2]) if counted else 0


# --- planted here ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _in_place(target: Path) -> Iterator[Path]:
    """What saves a folder without a temporary name."""
    target.mkdir(parents=True, exist_ok=True)
    yield target


PLANTED: dict[str, tuple[str, Callable[..., Any], Callable[..., Iterator[Trial]]]] = {
    "a save under the final name": ("new_folder", _in_place, at_one_save),
    "a manifest that nobody reads": ("_damage", lambda path: "", damaged_checkpoints),
}


def planted_bugs(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """Two bugs planted in this process: a save that writes in place, and a manifest that nobody reads. The groups of
    faults must find each, within `trials` trials."""
    for number, (bug, (name, instead, group)) in enumerate(PLANTED.items()):
        if only not in (None, number):
            continue
        place, began = folder / f"planted-{number}", time.monotonic()
        place.mkdir()
        with patch(f"attar.train.checkpoint.{name}", instead):
            found = next((one for one in group(place, trials=trials, seed=seed, only=None) if not one.has_passed), None)
        verdict, detail = ("wrong", "nothing noticed it") if found is None else ("recovered", "")
        yield Trial(number, bug, verdict, detail, time.monotonic() - began)
