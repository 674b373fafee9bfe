"""A thousand images or a million: time to start, cost of an image, memory; and one process against several.

    python benchmarks/scaling.py --images 1000 30000 1000000 --results benchmarks/results/2026-11-27-scaling.json
    python benchmarks/scaling.py --results FILE --table

Tiny images (16 px) in 200 folders of a temporary directory, and the same in tar shards of 50,000. Each figure is of a
fresh process, imports left out:

- the first start, which lists every file or meets every header, and the second, which reads the index of the first;
- images a second and CPU milliseconds an image over 300 batches of 32 views of a training run, all over the place;
- the peak of resident memory of a process that does so and of a loader's worker, in each of which the mapped index
  counts; and of a process and its worker together, in which what both map counts once (`Pss`: what other processes map
  too is divided among all, so let none with torch run beside).

Then the same work for each of one process and several: loader processes that make training views of 500 x 375 photos,
and ranks of `attar embed` on them. The ratio is of images a second to those of one process, times their number.

Files are links to 64 images, so that a million of them fit on any disk; all are in the page cache, of which another
machine may hold less. Starts are measured once, all else is the median of three. Memory is read from /proc, so this
runs on Linux. Twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine import given, machine

FOLDERS, DIFFERENT, SHARD = 200, 64, 50_000
BATCH_SIZE, BATCHES, IMG_SIZE, REPEATS = 32, 300, 32, 3
PHOTO_SIZE, EMBEDDED = (500, 375), 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[1_000, 30_000, 1_000_000])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--results", type=Path)
    parser.add_argument("--table", action="store_true", help="print the table of the result file and end")
    parser.add_argument("--measure", choices=sorted(MEASURES), help=argparse.SUPPRESS)  # what a fresh process does
    parser.add_argument("--place", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args.place)))
        return
    if args.table:
        print(table(json.loads(args.results.read_text())))
        return
    with tempfile.TemporaryDirectory() as name:
        record = {
            "benchmark": "scaling",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/scaling.py {given(args)}",
            "machine": machine("pyarrow", "pillow"),
            "settings": {"batch_size": BATCH_SIZE, "batches": BATCHES, "img_size": IMG_SIZE, "repeats": REPEATS},
            "sizes": [row for count in args.images for row in of_size(Path(name), count)],
            "processes": list(of_processes(Path(name), args.processes)),
        }
    if args.results:
        args.results.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))


# --- a thousand or a million ----------------------------------------------------------------------------------------


def of_size(root: Path, count: int) -> Iterator[dict[str, Any]]:
    """A folder and tar shards of so many images, removed again."""
    for kind, write in (("folder", write_folder), ("tar", write_tars)):
        place, cache = root / f"{kind}-{count}", root / "cache"
        write(place, count)
        time.sleep(2.5)  # a folder written to less than two seconds ago is listed again
        print(f"{datetime.datetime.now():%H:%M:%S} {kind} of {count:,}", flush=True)
        first, second = (measured("start", str(place), cache) for _ in range(2))
        had = {}
        for what in ("loading", "worker"):
            had |= median([measured(what, str(place), cache) for _ in range(REPEATS)])
        yield {"place": kind, "images": count, "first_start": first, "second_start": second, **had}
        shutil.rmtree(place)


def tiny_images() -> list[bytes]:
    """PNGs of 16 x 16 pixels."""
    import numpy as np
    from PIL import Image

    found = []
    for number in range(DIFFERENT):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


def write_folder(root: Path, count: int) -> None:
    """Links to the images, spread over the folders; a file has no more than 60,000 names."""
    images = tiny_images()
    for number in range(FOLDERS):
        (root / f"class_{number:03}").mkdir(parents=True)
    for number in range(count):
        path = root / f"class_{number % FOLDERS:03}" / f"image_{number:07}.png"
        generation, which = divmod(number, DIFFERENT)
        original = root.parent / f"{root.name}-originals" / f"{generation // 50_000}-{which}.png"
        if not original.exists():
            original.parent.mkdir(exist_ok=True)
            original.write_bytes(images[which])
        os.link(original, path)


def write_tars(root: Path, count: int) -> None:
    """The images in shards of 50,000."""
    images = tiny_images()
    root.mkdir()
    for start in range(0, count, SHARD):
        with tarfile.open(root / f"images-{start // SHARD:04}.tar", "w") as tar:
            for number in range(start, min(start + SHARD, count)):
                member = tarfile.TarInfo(f"class_{number % FOLDERS:03}/{number:07}.png")
                member.size = len(images[number % DIFFERENT])
                tar.addfile(member, io.BytesIO(images[number % DIFFERENT]))


def measured(what: str, place: str, cache: Path) -> dict[str, float]:
    """One of `MEASURES` in a fresh process."""
    command = [sys.executable, __file__, "--measure", what, "--place", place]
    environment = os.environ | {"ATTAR_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def start(place: str) -> dict[str, float]:
    """Seconds to open a place, and until the first batch is there."""
    from attar.data.loader import training_batches  # noqa: F401  imports are not what is measured
    from attar.data.sources import open_source

    began = time.perf_counter()
    source = open_source(place)
    opened = time.perf_counter()
    next(iter(batches_of(source, workers=0)))
    return {"open_s": round(opened - began, 3), "first_batch_s": round(time.perf_counter() - began, 3)}


def loading(place: str) -> dict[str, float]:
    """Speed and memory of a process that loads all batches."""
    from attar.data.loader import training_batches  # noqa: F401  imports are not what is measured
    from attar.data.sources import open_source

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    batches = iter(batches_of(open_source(place), workers=0))
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    images = (BATCHES - 1) * BATCH_SIZE
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "images_per_second": round(images / wall),
        "cpu_ms_per_image": round(1e3 * cpu / images, 3),
        "process_peak_mb": resident("self", "status", "VmHWM"),
    }


def worker(place: str) -> dict[str, float]:
    """Memory of a loader's worker that makes all batches, and of it and its parent together, after every 50th."""
    from attar.data.sources import open_source

    alone = both = 0.0
    for number, _ in enumerate(batches_of(open_source(place), workers=1), 1):
        if number % 50 == 0:  # the kernel walks all pages
            pids = ["self", *(child.pid for child in multiprocessing.active_children())]
            alone = max(alone, *(resident(pid, "status", "VmRSS") for pid in pids[1:]))
            both = max(both, sum(resident(pid, "smaps_rollup", "Pss") for pid in pids))
    return {"worker_peak_mb": alone, "both_peak_mb": both}


def resident(process: int | str | None, file: str, field: str) -> float:
    """A field of /proc/PROCESS/FILE in megabytes."""
    lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    return next(round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith(f"{field}:"))


def batches_of(source: Any, *, workers: int, img_size: int = IMG_SIZE, batches: int = BATCHES) -> Any:
    """The batches of a small training run."""
    from attar.config import ViewsConfig
    from attar.data.loader import ViewDataset, training_batches
    from attar.data.sampler import ViewOrder

    dataset = ViewDataset(source, ViewOrder(len(source), seed=0, repeats=1), ViewsConfig(), img_size)
    return training_batches(dataset, batch_size=BATCH_SIZE, start_step=0, num_steps=batches, workers=workers)


# --- one process or several -----------------------------------------------------------------------------------------


def of_processes(root: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    """Images a second of so many processes, each with as much to do."""
    import numpy as np
    from PIL import Image

    from attar.data.decode import open_image
    from attar.data.sources import open_source

    folder = root / "photos"
    folder.mkdir()
    scenes = open_source(f"playground:0?n={EMBEDDED * max(numbers)}")
    for number in range(len(scenes)):
        pixels = open_image(scenes.read(number), name="scene").resized(None, PHOTO_SIZE)
        Image.fromarray(np.asarray(pixels)).save(folder / f"{number:04}.jpg", quality=90)
    for what in ("views", "embedding"):
        rates = {}
        for count in numbers:
            print(f"{datetime.datetime.now():%H:%M:%S} {what} by {count}", flush=True)
            rates[count] = statistics.median(RATES[what](folder, root, count) for _ in range(REPEATS))
        for count in numbers:
            efficiency = rates[count] / (count * rates[numbers[0]] / numbers[0])
            yield {
                "work": what,
                "processes": count,
                "images_per_second": round(rates[count], 1),
                "efficiency": round(efficiency, 3),
            }


def views_by(folder: Path, root: Path, count: int) -> float:
    """Training views of 224 px a second by so many loader processes."""
    from attar.data.sources import open_source

    batches = iter(batches_of(open_source(str(folder)), workers=count, img_size=224, batches=8 * count + 2 * count))
    for _ in range(2 * count):  # each worker's first ones
        next(batches)
    began = time.perf_counter()
    made = sum(BATCH_SIZE for _ in batches)
    return made / (time.perf_counter() - began)


def embedded_by(folder: Path, root: Path, count: int) -> float:
    """Images a second of so many ranks of `attar embed`, by what twice as many images for each take more."""
    seconds = []
    for share in (EMBEDDED // 2, EMBEDDED):
        out = root / "pool"
        shutil.rmtree(out, ignore_errors=True)
        place = [f"{folder}?images={share * count / len(list(folder.iterdir()))}"]
        settings = ["--model", "vit_tiny_patch16_224", "--weights", "random", "--device", "cpu", "--workers", "0"]
        flags = ["embed", *settings, "--data", *place, "--out", str(out), "--shard-size", "128", "--precision", "fp32"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "--", "attar"]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *(launcher if count > 1 else ["-m", "attar"]), *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    return (EMBEDDED // 2) * count / (seconds[1] - seconds[0])


RATES: dict[str, Callable[[Path, Path, int], float]] = {"views": views_by, "embedding": embedded_by}
MEASURES: dict[str, Callable[[str], dict[str, float]]] = {"start": start, "loading": loading, "worker": worker}


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def table(record: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| place | images | first start | second start | images/s | CPU ms an image | process | worker | both |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['place']} | {row['images']:,} | {row['first_start']['first_batch_s']:.2f} s"
        f" | {row['second_start']['first_batch_s']:.2f} s | {row['images_per_second']:,}"
        f" | {row['cpu_ms_per_image']:.2f} | {row['process_peak_mb']:.0f} MB | {row['worker_peak_mb']:.0f} MB"
        f" | {row['both_peak_mb']:.0f} MB |"
        for row in record["sizes"]
    ]
    lines += ["", "| work | processes | images/s | of as many times one |", "|---|---|---|---|"]
    lines += [
        f"| {row['work']} | {row['processes']} | {row['images_per_second']:.0f} | {100 * row['efficiency']:.0f} % |"
        for row in record["processes"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
