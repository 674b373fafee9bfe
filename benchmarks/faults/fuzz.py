"""Fuzzing: mutated bytes into every reader are read, or refused in attar's words; nothing crashes or hangs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import Trial, chance
from benchmarks.faults.readers import READERS

_BATCH = 250  # inputs of a fork
_HANG_S = 10
_INTERESTING = (b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80", b"{" * 50, b"[" * 200, b"-1", b"1e999", b"\n", b'"')


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped bits, another byte, a cut, a piece twice, numbers that hurt, or noise alone."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randint(0, 2 * len(data) + 1))
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(changed) + 1) if rng.random() < 0.7 else rng.randrange(min(64, len(changed)) + 1)
        match rng.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(changed):
                changed[place] = rng.randrange(256)
            case 2:
                del changed[place:]
            case 3:
                piece = changed[place : place + rng.randint(1, 64)]
                changed[place:place] = piece
            case 4:
                word = rng.choice(_INTERESTING)
                changed[place : place + rng.choice((0, len(word)))] = word
            case _:
                number = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1)))
                changed[place : place + 4] = number
    return bytes(changed)


def fuzzed(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """`trials` mutated or random files, spread over all readers: each is read, or refused by one of attar's errors
    within ten seconds; no other error, no crash (check h)."""
    numbers = list(range(trials)) if only is None else [only]
    names = list(READERS)
    for name in names:
        shutil.rmtree(folder / "sound" / name, ignore_errors=True)
        (folder / "sound" / name).mkdir(parents=True)
        READERS[name].make(folder / "sound" / name)
        READERS[name].read(folder / "sound" / name)  # which must be sound
    for start in range(0, len(numbers), _BATCH):
        yield from _batch(folder, numbers[start : start + _BATCH], seed, names)


def _batch(folder: Path, numbers: list[int], seed: int, names: list[str]) -> Iterator[Trial]:
    """In a fork, which tells before each input what it is: should it die, that is known."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            _work(folder, numbers, seed, names, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    _, status = os.waitpid(pid, 0)
    told = dict(line.split("\t", 1) for line in lines if "\t" in line)
    for number in numbers:
        said = told.get(str(number))
        name = names[number % len(names)]
        if said == "fine":
            yield Trial(number, name, "refused")
        elif said is None:
            yield Trial(number, name, "wrong", "not reached, as an earlier one ended the process")
        else:
            ended = f" (the process ended with status {status})" if said == "begun" else ""
            yield Trial(number, name, "wrong", f"{said}{ended}")


def _work(folder: Path, numbers: list[int], seed: int, names: list[str], writing: int) -> None:
    from attar.errors import AttarError

    def hang(*_: object) -> None:
        raise TimeoutError(f"hangs for {_HANG_S} s")

    signal.signal(signal.SIGALRM, hang)
    for number in numbers:
        rng, name = chance(seed, number), names[number % len(names)]
        place = folder / f"fuzz-{os.getpid()}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder / "sound" / name, place)
        file = rng.choice(sorted(path for path in place.rglob("*") if path.is_file()))
        file.write_bytes(mutated(file.read_bytes(), rng))
        os.write(writing, f"{number}\tbegun\n".encode())
        signal.alarm(_HANG_S)
        began = time.monotonic()
        try:
            READERS[name].read(place)
            said = "fine"
        except AttarError:
            said = "fine"
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error)[:200]}".replace("\n", " ").replace("\t", " ")
            said = f"{reason} at {Path(where.filename).name}:{where.lineno} after {time.monotonic() - began:.1f} s"
        signal.alarm(0)
        os.write(writing, f"{number}\t{said}\n".encode())
    shutil.rmtree(folder / f"fuzz-{os.getpid()}", ignore_errors=True)
