"""Damage: checkpoints that are flipped, cut, swapped or mixed are noticed, never loaded, and the older one is used."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.faults.harness import Trial, chance, distil_words, forked, numbered

_FILES = ("tensors.safetensors", "state.json", "manifest.json")


def flip(path: Path, rng: random.Random) -> str:
    """One bit."""
    data = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(data)), rng.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} of {path.name} flipped"


def cut(path: Path, rng: random.Random) -> str:
    """The end is missing."""
    data = path.read_bytes()
    kept = rng.randrange(len(data.rstrip()))  # white space behind JSON means nothing
    path.write_bytes(data[:kept])
    return f"{path.name} cut to {kept} of {len(data)} bytes"


def extend(path: Path, rng: random.Random) -> str:
    """Something follows."""
    more = b"x" + rng.randbytes(rng.randint(0, 63))
    path.write_bytes(path.read_bytes() + more)
    return f"{len(more)} bytes behind {path.name}"


def zero(path: Path, rng: random.Random) -> str:
    """A block of zeros, as a disk leaves that lost power."""
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    length = rng.randint(1, min(4096, len(data) - start))
    if not any(data[start : start + length]):
        return flip(path, rng)  # it was zero before
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    return f"{length} zeros from byte {start} of {path.name}"


def missing(path: Path, rng: random.Random) -> str:
    """A file that is gone."""
    path.unlink()
    return f"{path.name} removed"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (flip, cut, extend, zero, missing)


def damaged_checkpoints(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """The newest of two checkpoints is damaged: one bit, a cut, more bytes, zeros, a file gone, or a file of the other
    one in its place. It must not be loaded, and the older one must be (check c)."""
    run = folder / "run"
    ended = forked(distil_words(run), log=folder / "run.log")
    assert ended.code == 0, ended.said
    older, newest = sorted((run / "checkpoints").iterdir())[-2:]
    kept = folder / "kept"
    shutil.copytree(run / "checkpoints", kept)
    for number in numbered(trials, only):
        rng, began = chance(seed, number), time.monotonic()
        place = folder / "checkpoints"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kept, place)
        fault = _harm(place / newest.name, place / older.name, rng)
        found, said = chosen(place)
        right = found == older.name and any(newest.name in line for line in said)
        detail = "" if right else f"{found} was chosen, and said: {said}"
        verdict = "recovered" if right else "wrong"
        yield Trial(number, fault, verdict, detail, time.monotonic() - began)


def _harm(newest: Path, older: Path, rng: random.Random) -> str:
    name = rng.choice(_FILES)
    if rng.random() < 1 / (len(DAMAGES) + 1):
        shutil.copy(older / name, newest / name)
        return f"{name} of {older.name} in {newest.name}"
    return rng.choice(DAMAGES)(newest / name, rng)


def chosen(checkpoints: Path) -> tuple[str | None, list[str]]:
    """(the checkpoint that a resume would load, what it says meanwhile)."""
    from attar.train.checkpoint import _newest_complete

    said: list[str] = []
    found = _newest_complete(checkpoints, said.append)
    return (None if found is None else found.name), said
