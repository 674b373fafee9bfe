"""The 100 nearest of 1,000,000 x 384 float16 rows for 1,000 queries: attar's exact search against FAISS IndexFlatIP.

    pip install ".[ann]"
    python benchmarks/search.py --out benchmarks/results/DATE-search.json

Clustered random unit vectors in a file of float16, as shards of a pool are; neighbours share a cluster.

- `attar`: `search` over blocks that are read from the file as they are needed, as a pool's shards are.
- `faiss`: `IndexFlatIP.search` of all queries at once. FAISS keeps float32, so the file is read into it first; that
  is timed apart (`faiss_build`) and not held against it.

Both get the same number of threads. Rounds alternate the sides in one process; times are medians. Memory is the peak of
resident memory in a fresh process for each side, in MiB, Python and PyTorch included. At this size attar shall stay
below 1.5 GB, that is 1,430.5 MiB.

FAISS compares in float32 and keeps the order of rows among equals, attar compares without rounding and by id; a
neighbour is the same if both sides have it, and tied if only one has it and it is as similar as the last one of the
other within the error of float32. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.curation.search import search
from attar.utils.seeding import torch_generator

BLOCK = 65_536
CLUSTERS = 2_000
LIMIT_MIB = 1430.5  # 1.5 GB: what attar's process may take with the rows and queries that are set by default
NOISE = 1.0  # length of a row's own part, in units of its cluster's direction
SETTINGS = ("rows", "queries", "width", "k", "rounds", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=("attar", "faiss"), help=argparse.SUPPRESS)  # what a fresh process does
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.threads = args.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps(peak(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.pool = Path(folder) / "pool.npy"
        write_pool(args)
        text = json.dumps(record(args), indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def record(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "search",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/search.py", *settings(args)]),
        "machine": machine(args.threads),
        "results": compare(args),
    }


def settings(args: argparse.Namespace) -> list[str]:
    return [f"--{name}={getattr(args, name)}" for name in (*SETTINGS, "threads")]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, peaks, ratio and agreement."""
    memory = {name: fresh_peak(name, args) for name in ("attar", "faiss")}  # first, while this process is small
    queries = rows_of(args, "queries", args.queries)
    started = time.perf_counter()
    index = faiss_index(args)
    built = time.perf_counter() - started
    sides: dict[str, Callable[[], Any]] = {
        "attar": lambda: attar(args, queries),
        "faiss": lambda: index.search(queries.numpy(), args.k),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for number in range(args.rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter()
            found[name] = sides[name]()
            seconds[name].append(round(time.perf_counter() - started, 3))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "seconds": seconds,
        "median_seconds": middle,
        "faiss_build_seconds": round(built, 3),
        "attar_over_faiss": round(middle["attar"] / middle["faiss"], 3),
        "peak_mib": memory,
        "limit_mib": LIMIT_MIB,
    } | agreement(found["attar"], found["faiss"])


def attar(args: argparse.Namespace, queries: Tensor) -> Any:
    return search(blocks(args.pool), queries, k=args.k)


def blocks(pool: Path) -> Iterator[tuple[Tensor, Tensor]]:
    rows = np.load(pool, mmap_mode="r")  # tells shape and offset; no page of it is touched
    with pool.open("rb") as file:
        file.seek(rows.offset)
        for start in range(0, len(rows), BLOCK):
            count = min(BLOCK, len(rows) - start)
            part = np.fromfile(file, rows.dtype, count * rows.shape[1]).reshape(count, -1)
            yield torch.from_numpy(part), torch.arange(start, start + count)


def faiss_index(args: argparse.Namespace) -> Any:
    import faiss

    faiss.omp_set_num_threads(args.threads)
    index = faiss.IndexFlatIP(args.width)
    for rows, _ in blocks(args.pool):
        index.add(rows.float().numpy())
    return index


def agreement(ours: Any, theirs: tuple[Any, Any]) -> dict[str, float]:
    """How many neighbours are the same, and how far similarities of equal rank are apart at most."""
    similarity, rows = theirs
    same, tied = 0, 0
    for mine, place, other, row in zip(ours.similarity.numpy(), ours.place.numpy(), similarity, rows, strict=True):
        common = np.isin(place, row)
        same += int(common.sum())
        tied += int((np.abs(mine[~common] - other[-1]) < 1e-5).sum())
    return {
        "share_of_same_neighbours": same / rows.size,
        "share_of_same_or_tied_neighbours": (same + tied) / rows.size,
        "largest_difference_of_similarity": float(np.abs(ours.similarity.numpy() - similarity).max()),
    }


def write_pool(args: argparse.Namespace) -> None:
    shape = (args.rows, args.width)
    pool = np.lib.format.open_memmap(args.pool, mode="w+", dtype=np.float16, shape=shape)
    for number, start in enumerate(range(0, args.rows, BLOCK)):
        count = min(BLOCK, args.rows - start)
        pool[start : start + count] = rows_of(args, f"rows {number}", count).half().numpy()
    pool.flush()


def rows_of(args: argparse.Namespace, name: str, count: int) -> Tensor:
    """(count, D) float32 of length 1 that float16 holds exactly, around directions that all share."""
    generator = torch_generator(args.seed, name)
    centres = F.normalize(torch.randn(CLUSTERS, args.width, generator=torch_generator(args.seed, "centres")), dim=1)
    own = F.normalize(torch.randn(count, args.width, generator=generator), dim=1)
    chosen = centres[torch.randint(CLUSTERS, (count,), generator=generator)]
    return F.normalize(chosen + NOISE * own, dim=1).half().float()


def fresh_peak(name: str, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, f"--pool={args.pool}", *settings(args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak(args: argparse.Namespace) -> dict[str, float]:
    """MiB of resident memory at most, and before the search: Python, PyTorch and the queries."""
    queries = rows_of(args, "queries", args.queries)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the queries
    if args.measure == "faiss":
        index = faiss_index(args)
        index.search(queries.numpy(), args.k)
    else:
        attar(args, queries)
    return {"process": round(resident("VmHWM"), 1), "before": round(before, 1)}


def resident(field: str) -> float:
    """MiB; the kernel counts in KiB and calls them kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def machine(threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "numpy", "faiss-cpu")}


if __name__ == "__main__":
    main()
