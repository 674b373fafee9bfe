"""Kills: a run that is killed at any moment and started again ends with the bytes of one that was not."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.harness import (
    SAVE_EVERY,
    STEPS,
    Trial,
    chance,
    differences,
    distil_words,
    forked,
    golden_run,
    half_under_a_whole_name,
    killed_after,
    left_behind,
    numbered,
    outcome,
    whole_checkpoints,
)

_SAVE = STEPS - SAVE_EVERY  # the step whose save is looked at closely
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "shutil.rmtree")


def random_kills(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """Each run is killed one to three times, at times drawn over its whole length, then let to its end (check a)."""
    golden, length = golden_run(folder)
    for number in numbered(trials, only):
        rng = chance(seed, number)
        times = [rng.uniform(0.0, 1.1 * length) for _ in range(rng.randint(1, 3))]
        began = time.monotonic()
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"
        problem = ""
        for after in times:
            newest = max(whole_checkpoints(run), default=0)
            ended = forked(distil_words(run), while_running=killed_after(after), log=log)
            problem = problem or _after_kill(run, ended.code, newest, ended.said)
        ended = forked(distil_words(run), log=log)
        problem = problem or (f"exit code {ended.code}: {ended.said[-300:]}" if ended.code else "")
        problem = problem or differences(outcome(run), golden)
        problem = problem or ", ".join(left_behind(run))
        fault = "killed after " + ", ".join(f"{after:.3f} s" for after in times)
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            _remove(run)


def _after_kill(run: Path, code: int, newest: int, said: str) -> str:
    """What must hold at any moment: a checkpoint that was whole is there still, or a newer one is."""
    if code not in (0, -signal.SIGKILL):
        return f"ended with {code} before it was killed: {said[-300:]}"
    now = max(whole_checkpoints(run), default=0)
    if now < newest:
        return f"the newest whole checkpoint was step {newest}, and is {now} after the kill"
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    if len(lines) > now + SAVE_EVERY + 2 and now < STEPS:
        return f"{len(lines)} steps were done, and the newest checkpoint is {now}: more than one interval is lost"
    return half_under_a_whole_name(run)


def at_each_event(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """A kill just before each file is opened to write, renamed or removed in the run directory, one after the other
    (check b); then the same with the disk full from there on, and free again at the next start."""
    events = range(1, len(_events_of_a_run(folder)) + 1)
    faults = [(kind, event) for kind in ("killed", "no space") for event in events]
    yield from _at_events(folder, faults, trials=trials, only=only)


def at_one_save(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """The same at the events of one save alone, from its temporary folder to the removal of an older checkpoint; the
    disk is full from every third of them on."""
    found = _events_of_a_run(folder)
    first, after = (
        next(place for place, path in enumerate(found, 1) if f"step-{step:08d}" in path)
        for step in (_SAVE, _SAVE + SAVE_EVERY)
    )
    last = max(place for place, path in enumerate(found[: after - 1], 1) if "/checkpoints/" in path)
    faults = [("killed", event) for event in range(first, last + 1)]
    faults += [("no space", event) for event in range(first, last + 1, 3)]
    yield from _at_events(folder, faults, trials=trials, only=only)


def _at_events(folder: Path, faults: Sequence[tuple[str, int]], *, trials: int, only: int | None) -> Iterator[Trial]:
    golden, _ = golden_run(folder)
    for number in range(len(faults)) if only is None else (only,):
        if trials and number >= trials:
            break
        kind, event = faults[number]
        began = time.monotonic()
        run, log = folder / f"run-{number}", folder / f"run-{number}.log"
        ended = forked(distil_words(run), before=planted(run, event, kind), log=log)
        problem = _ended_rightly(kind, ended.code, ended.said) or half_under_a_whole_name(run)
        ended = forked(distil_words(run), log=log)
        problem = problem or (f"exit code {ended.code}: {ended.said[-300:]}" if ended.code else "")
        problem = problem or differences(outcome(run), golden) or ", ".join(left_behind(run))
        fault = f"{kind} at event {event} of {faults[-1][1]}"
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            _remove(run)


def _ended_rightly(kind: str, code: int, said: str) -> str:
    if kind == "killed":
        return "" if code == -signal.SIGKILL else f"ended with {code}, not by the kill: {said[-300:]}"
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if code not in (0, 2):  # 0 where what could not be written is no loss, such as a lock that is removed
        return f"exit code {code}: {last}"
    return f"a traceback: {said[-500:]}" if "Traceback" in said else ""


def is_change(run: Path, event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change something in a run directory."""
    if event not in _EVENTS or not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
        return False
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    return os.fsdecode(arguments[0]).startswith(str(run))


def _events_of_a_run(folder: Path) -> list[str]:
    """The paths that an undisturbed run changes, one for each event, in order."""
    run, file = folder / "counted", folder / "events"

    def plant() -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if is_change(run, event, arguments):
                os.write(descriptor, os.fsencode(arguments[0]) + b"\n")

        sys.addaudithook(hook)

    ended = forked(distil_words(run), before=plant, log=folder / "counted.log")
    assert ended.code == 0, ended.said
    return file.read_text().splitlines()


def planted(run: Path, at: int, kind: str) -> Callable[[], None]:
    """A hook that kills this process, or says that the disk is full, from an event on."""

    def plant() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if not is_change(run, event, arguments):
                return
            count += 1
            if kind == "killed" and count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "no space" and count >= at and event in ("open", "os.rename", "os.mkdir"):
                raise OSError(28, "No space left on device", os.fsdecode(arguments[0]))

        sys.addaudithook(hook)

    return plant


def _remove(run: Path) -> None:
    import shutil

    shutil.rmtree(run)
