"""Embedding: killed many times, a pool holds the names and vectors of one that was not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.faults.harness import STUDENT, Trial, chance, forked, killed_after

IMAGES, SHARD = 100_000, 400


def killed_embedding(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """100,000 images are embedded by a command that is killed `trials` times; at its end names and vectors are those of
    an undisturbed one, and no shard was made twice (check j). One trial of the record stands for all kills."""
    images = min(IMAGES, 5 * SHARD * max(2, trials))
    rng, began = chance(seed, 0), time.monotonic()
    golden, killed = folder / "golden", folder / "killed"
    ended = forked(words(golden, images), log=folder / "golden.log", deadline_s=3600)
    assert ended.code == 0, ended.said
    length = time.monotonic() - began
    kills, seen = 0, {}
    problem = ""
    while kills < trials and not (killed / "manifest.json").exists():
        forked(
            words(killed, images),
            while_running=killed_after(rng.uniform(0.2, 0.9 * length / trials)),  # all come before the end
            log=folder / "k.log",
        )
        kills += 1
        for path in killed.glob("shard-*.parquet"):
            before = seen.setdefault(path.name, path.stat().st_mtime_ns)
            if before != path.stat().st_mtime_ns:
                problem = problem or f"{path.name} was made twice"
    ended = forked(words(killed, images), log=folder / "k.log", deadline_s=3600)
    problem = problem or (f"exit code {ended.code}: {ended.said[-300:]}" if ended.code else "")
    problem = problem or (f"done after {kills} kills" if kills < trials else "")
    problem = problem or ("no kill came behind a finished shard" if not seen else "")
    for one in sorted(golden.glob("shard-*.parquet")):
        other = killed / one.name
        if not problem and (not other.exists() or one.read_bytes() != other.read_bytes()):
            problem = f"{one.name} differs"
    fault = f"{images:,} images, killed {kills} times, the last with {len(seen)} of {images // SHARD} shards done"
    yield Trial(0, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)


def words(out: Path, images: int) -> list[str]:
    """The command."""
    return [
        *("embed", "--model", STUDENT, "--weights", "random", "--img-size", "32", "--data", f"playground:0?n={images}"),
        *("--out", str(out), "--workers", "0", "--precision", "fp32", "--device", "cpu"),
        *("--batch-size", "200", "--shard-size", str(SHARD)),
    ]
