"""A folder of many files: how long until the first batch, and does a loader's memory grow with their number?

    python benchmarks/many_files.py --files 20000 --out benchmarks/results/2026-11-22-many-files.json

Makes so many tiny images in 200 folders of a temporary directory and measures, each in a fresh process:

- the first start, which lists every file, and the second, which looks at each folder's time; to compare with,
  torchvision's ImageFolder, which lists every file at every start (files just written: all of it from memory);
- the peak of resident memory of a process that loads 200 batches, and of a worker that does, from all files and
  from 1,000 files.

Times leave out imports; each figure but the first start is the median of three. Memory is read from /proc, so this
runs on Linux. About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine

FOLDERS = 200
FEW = 1_000
BATCH_SIZE, BATCHES, IMG_SIZE = 32, 200, 32
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)  # what a fresh process does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args.folder)))
        return
    results = compare(args.files)
    record = {
        "benchmark": "many_files",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/many_files.py --files {args.files}",
        "machine": machine("torchvision", "pyarrow"),
        "settings": {
            "folders": FOLDERS,
            "batch_size": BATCH_SIZE,
            "batches": BATCHES,
            "img_size": IMG_SIZE,
            "repeats": REPEATS,
        },
        "results": results,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def compare(files: int) -> dict[str, Any]:
    """All measurements, and the ratios between them."""
    with tempfile.TemporaryDirectory() as name:
        many, few, cache = (Path(name) / part for part in ("many", "few", "cache"))
        write_images(many, files)
        write_images(few, FEW)
        time.sleep(2.5)  # a folder written to less than two seconds ago is listed again

        def measure(what: str, folder: Path) -> dict[str, float]:
            command = [sys.executable, __file__, "--measure", what, "--folder", str(folder)]
            done = subprocess.run(
                command, env=os.environ | {"ATTAR_CACHE": str(cache)}, stdout=subprocess.PIPE, check=True
            )
            return dict(json.loads(done.stdout))

        first = measure("start", many)
        second = median([measure("start", many) for _ in range(REPEATS)])
        reference = median([measure("imagefolder", many) for _ in range(REPEATS)])
        memory_many, memory_few = (median([measure("memory", f) for _ in range(REPEATS)]) for f in (many, few))
    return {
        "files": files,
        "first_start": first,
        "second_start": second,
        "imagefolder_start": reference,
        "second_start_over_first": round(second["open_s"] / first["open_s"], 4),
        "second_start_over_imagefolder": round(second["open_s"] / reference["open_s"], 4),
        "memory": {f"{files} files": memory_many, f"{FEW} files": memory_few},
        "process_growth_mb": {
            f"{files} files": growth(memory_many),
            f"{FEW} files": growth(memory_few),
        },
        "peak_memory_ratio": {
            who: round(memory_many[f"{who}_peak_mb"] / memory_few[f"{who}_peak_mb"], 4) for who in ("process", "worker")
        },
    }


def write_images(root: Path, count: int) -> None:
    """`count` PNG files of 8 x 8 pixels, spread over the folders."""
    import io

    from PIL import Image

    for number in range(FOLDERS):
        (root / f"class_{number:03}").mkdir(parents=True)
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 256 % 256, 80)).save(file, "PNG")
        (root / f"class_{number % FOLDERS:03}" / f"image_{number:07}.png").write_bytes(file.getvalue())


def start(folder: Path) -> dict[str, float]:
    """Seconds to open the folder, and until the first batch is there."""
    from attar.data.loader import training_batches  # noqa: F401  imports are not what is measured
    from attar.data.sources import open_source

    began = time.perf_counter()
    source = open_source(str(folder))
    opened = time.perf_counter()
    next(iter(batches_of(source, workers=0)))
    return {"open_s": round(opened - began, 4), "first_batch_s": round(time.perf_counter() - began, 4)}


def imagefolder(folder: Path) -> dict[str, float]:
    """Seconds that torchvision takes to open the folder."""
    from torchvision.datasets import ImageFolder

    began = time.perf_counter()
    ImageFolder(str(folder))
    return {"open_s": round(time.perf_counter() - began, 4)}


def memory(folder: Path) -> dict[str, float]:
    """Resident megabytes: after the imports, and the most while this process or one worker loads all batches."""
    import multiprocessing

    from attar.data.loader import training_batches  # noqa: F401  imports are not what is measured
    from attar.data.sources import open_source

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    imported = resident("self", "VmRSS")
    for _ in batches_of(open_source(str(folder)), workers=0):
        pass
    process, worker = resident("self", "VmHWM"), 0.0
    for _ in batches_of(open_source(str(folder)), workers=1):
        worker = max(worker, *(resident(child.pid, "VmRSS") for child in multiprocessing.active_children()))
    return {"after_imports_mb": imported, "process_peak_mb": process, "worker_peak_mb": worker}


def resident(process: int | str | None, field: str) -> float:
    """A field of /proc/PROCESS/status in megabytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:"))


def batches_of(source: Any, *, workers: int) -> Any:
    """The batches of a small training run."""
    from attar.config import ViewsConfig
    from attar.data.loader import ViewDataset, training_batches
    from attar.data.sampler import ViewOrder

    dataset = ViewDataset(source, ViewOrder(len(source), seed=0, repeats=1), ViewsConfig(), IMG_SIZE)
    return training_batches(dataset, batch_size=BATCH_SIZE, start_step=0, num_steps=BATCHES, workers=workers)


MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {"start": start, "imagefolder": imagefolder, "memory": memory}


def growth(measured: dict[str, float]) -> float:
    return round(measured["process_peak_mb"] - measured["after_imports_mb"], 1)


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


if __name__ == "__main__":
    main()
