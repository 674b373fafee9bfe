"""Hostile files: none runs code, writes outside, takes long or much memory, or ends in an error that is not ours."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import Trial
from benchmarks.faults.readers import READERS
from benchmarks.faults.specimens import ABSOLUTE, Specimen, all_specimens

_SECONDS, _MEGABYTES, _HANG_S = 1.0, 300.0, 60


def met(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """Each of the specimens (0 trials), or so many of them, before the reader it is meant for (check g).

    None runs code, writes outside of its folder, takes more than a second of a processor or 300 MB, or ends in another
    error than attar's.
    """
    specimens = all_specimens()
    every = max(1, len(specimens) // trials) if trials else 1
    for number in range(seed % every, len(specimens), every) if only is None else (only,):
        specimen = specimens[number]
        outside = folder / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        place = outside / "a" / "b" / "c"  # so deep that what climbs out of it is seen
        place.mkdir(parents=True)
        canary = outside / "canary"
        specimen.write(place, canary)
        before = _files_of(outside) | _files_of(ABSOLUTE.parent)
        problem = _in_fork(specimen, place, folder / "result")
        after = _files_of(outside) | _files_of(ABSOLUTE.parent)
        new = sorted(str(path) for path in after - before if place not in path.parents)
        if canary.exists():
            problem = f"its code ran. {problem}"
        elif new:
            problem = f"it wrote {new}. {problem}"
        yield Trial(number, f"{specimen.name} ({specimen.reader})", "wrong" if problem else "refused", problem)


def _files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*")) if folder.is_dir() else set()


def _in_fork(specimen: Specimen, place: Path, result: Path) -> str:
    """What is wrong; nothing where all is well."""
    result.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        signal.alarm(_HANG_S)  # which ends it
        try:
            result.write_text(_read(specimen, place))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return result.read_text() if result.exists() else f"the process ended with status {status}"


def _read(specimen: Specimen, place: Path) -> str:
    from attar.errors import AttarError

    sound = place.parents[3] / "sound"  # read first: libraries that wake up are not the specimen's doing
    sound.mkdir()
    READERS[specimen.reader].make(sound)
    READERS[specimen.reader].read(sound)
    shutil.rmtree(sound)
    Path("/proc/self/clear_refs").write_text("5")
    memory, began, said = _megabytes("VmRSS"), time.process_time(), ""
    try:
        READERS[specimen.reader].read(place)
    except AttarError:
        pass
    except BaseException as error:
        said = f"{type(error).__name__}: {str(error)[:200]}. "
    seconds, more = time.process_time() - began, _megabytes("VmHWM") - memory
    if seconds > _SECONDS:
        said += f"It took {seconds:.1f} s. "
    if more > _MEGABYTES:
        said += f"It took {more:.0f} MB. "
    return said


def _megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{field}:"))
