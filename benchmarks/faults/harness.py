"""What every group of faults stands on: tiny runs, forked processes, a judge that shares no code with attar."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STEPS, SAVE_EVERY = 40, 4
TEACHER = "vit_tiny_patch16_224?patch_size=8&embed_dim=48&depth=1&num_heads=2"
STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
DEADLINE_S = 120.0
PASSED = ("recovered", "refused")


@dataclass(frozen=True)
class Trial:
    """How one trial ended.

    Attributes:
        number: Which one; with the command's seed it names everything random in it.
        fault: What was done.
        verdict: `recovered`, `refused` (clearly, nothing lost), `lost` or `wrong`.
        detail: What was seen, where it did not pass.
        seconds: Wall time.
    """

    number: int
    fault: str
    verdict: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def has_passed(self) -> bool:
        return self.verdict in PASSED

    def as_json(self) -> dict[str, Any]:
        """For the record; times are left to it as a whole."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, or minus the signal that ended it, and what it said."""

    code: int
    said: str


def distil_words(out: Path, *more: str) -> list[str]:
    """Forty steps of a tiny student on the playground, a checkpoint every fourth."""
    return [
        *("distill", "--teacher", TEACHER, "--teacher-weights", "random", "--student", STUDENT),
        *("--data", "playground:0?n=64", "--img-size", "32", "--batch-size", "8", "--max-steps", str(STEPS)),
        *("--workers", "0", "--precision", "fp32", "--device", "cpu", "--optim.lr", "1e-3", "--log-every", "1"),
        *("--checkpoint.every", str(SAVE_EVERY), "--out", str(out), *more),
    ]


def warm_up() -> None:
    """Import what a run imports, before anything is forked: a trial then takes a second, not ten. No thread is made."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    for name in ("distill", "judging", "report", "embed", "transfer", "evaluate", "distill_vl"):
        __import__(f"attar.recipes.{name}")
    for name in ("captions", "lists", "sentences", "sources"):
        __import__(f"attar.data.{name}")


def forked(
    words: Sequence[str],
    *,
    before: Callable[[], None] = lambda: None,
    while_running: Callable[[int], None] = lambda pid: None,
    deadline_s: float = DEADLINE_S,
    log: Path,
) -> Ended:
    """Run `attar WORDS` in a fork of this process.

    Args:
        words: Of the command line.
        before: Called in the fork, to plant a fault.
        while_running: Called here with the fork's number, to do something to it.
        deadline_s: After which it is killed and counts as hanging.
        log: Where its output goes.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _become(words, before, log)
    while_running(pid)
    deadline = time.monotonic() + deadline_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(-999, f"hung for {deadline_s:g} s\n{log.read_text()[-500:]}")
        time.sleep(0.005)
    return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))


def _become(words: Sequence[str], before: Callable[[], None], log: Path) -> None:
    """The life of a fork."""
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        from attar import cli

        before()
        code = cli.main(list(words))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def killed_after(seconds: float) -> Callable[[int], None]:
    """Kill a fork after so long, unless it has ended."""

    def kill(pid: int) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)

    return kill


# --- the judge ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a finished run left, without anything that a clock wrote."""

    student: str
    tensors: str
    lines: tuple[str, ...]


def outcome(run: Path) -> Outcome:
    """Hashes of the student and of all tensors of the last checkpoint, and what was logged of each step."""
    lines = []
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        line = {key: value for key, value in line.items() if key != "time" and "second" not in key}
        lines.append(json.dumps(line, sort_keys=True))
    last = run / f"checkpoints/step-{STEPS:08d}/tensors.safetensors"
    return Outcome(hash_of(run / "student" / "model.safetensors"), hash_of(last), tuple(lines))


def differences(found: Outcome, golden: Outcome) -> str:
    """In what a run differs from the undisturbed one; nothing where it does not."""
    said = [name for name in ("student", "tensors") if getattr(found, name) != getattr(golden, name)]
    if found.lines != golden.lines:
        steps = [json.loads(line).get("step") for line in found.lines]
        said.append(f"metrics ({len(found.lines)} lines for {len(golden.lines)}, steps {steps[:60]})")
    return ", ".join(said)


def whole_checkpoints(run: Path) -> list[int]:
    """Steps of the checkpoints whose manifest verifies, by this module's own reading of it."""
    found = []
    for folder in run.glob("checkpoints/step-*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            files = json.loads((folder / "manifest.json").read_text())["files"]
            there = {path.name for path in folder.iterdir()} - {"manifest.json"}
            told = {name: (about["bytes"], about["sha256"]) for name, about in files.items()}
            if told == {name: ((folder / name).stat().st_size, hash_of(folder / name)) for name in there}:
                found.append(int(folder.name.removeprefix("step-")))
    return sorted(found)


def half_under_a_whole_name(run: Path) -> str:
    """Checkpoints that have their name and do not verify, which no reader may ever meet."""
    named = {path.parent.parent for path in run.rglob("checkpoints/step-*")}
    half = [
        path.name
        for place in sorted(named)
        for path in sorted(place.glob("checkpoints/step-*"))
        if int(path.name.removeprefix("step-")) not in whole_checkpoints(place)
    ]
    return f"{', '.join(half)} has its name and is not whole" if half else ""


def left_behind(run: Path) -> list[str]:
    """Temporary files and folders."""
    return sorted(str(path.relative_to(run)) for path in run.rglob(".*"))


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def golden_run(folder: Path) -> tuple[Outcome, float]:
    """(what an undisturbed run leaves, how long it takes)."""
    began = time.monotonic()
    ended = forked(distil_words(folder / "golden"), log=folder / "golden.log")
    assert ended.code == 0, ended.said
    return outcome(folder / "golden"), time.monotonic() - began


def chance(seed: int, number: int) -> random.Random:
    """Everything random in a trial."""
    return random.Random(f"{seed}/{number}")


def numbered(trials: int, only: int | None) -> Iterator[int]:
    """The trials to do."""
    yield from range(trials) if only is None else (only,)
