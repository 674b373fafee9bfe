"""How fast are training views made, against the paper's data path?

    python benchmarks/data_path.py --data SHARED/data --results FILE

The same photos (ImageNet-1000 and Caltech) as JPEGs of quality 90, scaled to 500 x 375 and to 1600 x 1200 and cut to
that shape, in a folder that is removed afterwards; the same number of loader processes and views of 224 px in batches:

- reference: Pillow decodes the whole image; timm's `create_transform` of the paper (RandomResizedCrop bicubic, flip,
  rand-m9-mstd0.5-inc1, normalisation, random erasing 0.25 in pixel mode), in a `DataLoader`;
- attar: `training_batches` over the same folder, by the same recipe of views;
- packed: the same over shards that `attar data pack` made of the larger images, as it does by default.

A round ends with normalised float views in the main process: attar's come as bytes, and are converted there. Clocks
run from the first batch of a round to the last one that arrives within --seconds. Rounds alternate the sides and their
order; images a second are medians over rounds, ratios those of each round: median, lowest, highest.

Then, in a process as a loader's and with one thread, where a view's microseconds go. Photos that were enlarged have
less detail than those of a camera, so their JPEGs are smaller and quicker to decode: with --mosaic an image is made of
photos side by side, each at its own size. Four minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets import ImageFolder

import attar
from attar.config import ViewsConfig
from attar.data import decode, loader, views
from attar.data.loader import ViewDataset, default_workers, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from attar.types import IMAGENET, Batch, Erased
from attar.utils.workers import keep_freed_memory
from machine import given, machine

SIZES = {"500x375": (500, 375), "1600x1200": (1600, 1200)}
PACKED = "1600x1200"  # the size whose images are packed, too
FOLDERS = ("imagenet_1000", "caltech_51")
IMG_SIZE, QUALITY, SEED = 224, 90, 0
PROFILED_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--images", type=int, default=300, help="of each size")
    parser.add_argument("--mosaic", action="store_true", help="photos side by side, none of them enlarged")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a side in a round")
    parser.add_argument(
        "--profiled", type=int, default=300, help="views of each side whose time is told by step; 0: none"
    )
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - args.workers))
    record = {
        "benchmark": "data_path",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/data_path.py --data SHARED/data {given(args)}{' --mosaic' * args.mosaic}",
        "machine": machine("torchvision", "timm", "pillow", "numpy", "pyarrow"),
        "results": [row_of(size, args) for size in args.size],
    }
    if args.results:
        args.results.parent.mkdir(parents=True, exist_ok=True)
        args.results.write_text(json.dumps(record, indent=2) + "\n")


def row_of(size: str, args: argparse.Namespace) -> dict[str, Any]:
    """Every side over images of one size."""
    with tempfile.TemporaryDirectory() as temporary, mock.patch.dict(os.environ, {"ATTAR_CACHE": f"{temporary}/cache"}):
        images = Path(temporary) / "images"
        write_images(images, SIZES[size], args)
        sides: dict[str, Any] = {"reference": Reference(images), "attar": attar_views(str(images))}
        if size == PACKED:
            attar.pack(attar.PackConfig(data=(str(images),), out=f"{temporary}/packed", workers=args.workers))
            sides["packed"] = attar_views(f"{temporary}/packed")
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.rounds):
            for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
                rates[name].append(rate(batches_of(sides[name], args), args.seconds))
        profiles = {name: in_worker(side, args.profiled) for name, side in sides.items()} if args.profiled else {}
        kilobytes = statistics.mean(path.stat().st_size for path in images.rglob("*.jpg")) / 1e3
    row = {
        "size": size,
        "kilobytes_per_image": round(kilobytes, 1),
        "images_per_s": {name: round(statistics.median(found), 1) for name, found in rates.items()},
        "times_as_fast": {name: ratio(rates[name], rates["reference"]) for name in sides if name != "reference"},
        "microseconds_per_view": profiles,
        "rounds": {name: [round(found, 1) for found in each] for name, each in rates.items()},
    }
    print(lines_of(row), flush=True)
    return row


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of each round: median, lowest, highest."""
    found = [one / other for one, other in zip(ours, theirs, strict=True)]
    middle = statistics.median(found)
    return {"median": round(middle, 3), "lowest": round(min(found), 3), "highest": round(max(found), 3)}


def lines_of(row: dict[str, Any]) -> str:
    """A row as a reader wants it."""
    text = f"\n{row['size']}, {row['kilobytes_per_image']:.0f} kB an image\n"
    for name, found in row["images_per_s"].items():
        times = row["times_as_fast"].get(name)
        against = f"  {times['median']:.2f}x ({times['lowest']:.2f} to {times['highest']:.2f})" if times else ""
        text += f"  {name:10} {found:8.1f} images/s{against}\n"
    for name, steps in row["microseconds_per_view"].items():
        text += f"  {name:10} {sum(steps.values()):,} us a view: "
        text += ", ".join(f"{step} {time:,}" for step, time in steps.items()) + "\n"
    return text


# --- images ----------------------------------------------------------------------------------------------------------


def write_images(folder: Path, size: tuple[int, int], args: argparse.Namespace) -> None:
    """A folder of one class of JPEGs."""
    photos = [photo for name in FOLDERS for photo in sorted((args.data / name).glob("*/*.jpg"))]
    (folder / "photos").mkdir(parents=True)
    for number in range(args.images):
        chosen = itertools.islice(itertools.cycle(photos), number * len(photos) // args.images, None)
        image = (
            mosaic(chosen, size) if args.mosaic else ImageOps.fit(opened(next(chosen)), size, Image.Resampling.BICUBIC)
        )
        image.save(folder / "photos" / f"{number:05}.jpg", quality=QUALITY)


def mosaic(photos: Iterator[Path], size: tuple[int, int]) -> Image.Image:
    """Photos side by side, as they are."""
    whole, top = Image.new("RGB", size), 0
    while top < size[1]:
        left, height = 0, size[1]
        while left < size[0]:
            photo = opened(next(photos))
            whole.paste(photo, (left, top))
            left, height = left + photo.width, min(height, photo.height)
        top += height
    return whole


def opened(photo: Path) -> Image.Image:
    return Image.open(photo).convert("RGB")


# --- the reference: the paper's data path ----------------------------------------------------------------------------


def paper_transform() -> Any:
    """As the released code calls timm."""
    return create_transform(
        IMG_SIZE,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    )


class Reference(Dataset[tuple[Tensor, int]]):
    """torchvision's folder and the paper's transform."""

    def __init__(self, images: Path) -> None:
        self.images = ImageFolder(str(images), paper_transform())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        while True:
            try:
                return self.images[row]  # type: ignore[no-any-return]
            except ValueError:  # posterize to 0 bits, which Pillow refuses: one view in 700, drawn again
                continue


def paper_batches(images: Reference, args: argparse.Namespace) -> Iterable[Tensor]:
    rows = itertools.cycle(range(len(images)))
    places = (list(itertools.islice(rows, args.batch_size)) for _ in itertools.count())
    for pixels, _ in DataLoader(images, batch_sampler=places, num_workers=args.workers):  # type: ignore[arg-type]
        yield pixels


# --- attar -----------------------------------------------------------------------------------------------------------


def attar_views(place: str) -> ViewDataset:
    """Views of the images in a place, in the order of a run."""
    source = open_source(place)
    return ViewDataset(source, ViewOrder(len(source), SEED), ViewsConfig(), IMG_SIZE)


def attar_batches(dataset: ViewDataset, args: argparse.Namespace) -> Iterable[Tensor]:
    found = training_batches(dataset, batch_size=args.batch_size, start_step=0, num_steps=10**6, workers=args.workers)
    return (normalised(batch) for batch in found)


def normalised(batch: Batch) -> Tensor:
    """(B, 3, S, S), as a backbone makes them of a batch."""
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in IMAGENET)
    return batch.to(torch.device("cpu")).views.sub_(mean).div_(std)


# --- measuring -------------------------------------------------------------------------------------------------------


def batches_of(side: Any, args: argparse.Namespace) -> Iterable[Tensor]:
    return paper_batches(side, args) if isinstance(side, Reference) else attar_batches(side, args)


def rate(batches: Iterable[Tensor], seconds: float) -> float:
    """Views a second once the first batch is there; the loader's processes end with the round."""
    found, count, taken = iter(batches), 0, 0.0
    next(found)
    began = time.perf_counter()
    while taken < seconds:
        count += len(next(found))
        taken = time.perf_counter() - began
    return count / taken


class Clock:
    """Seconds by step, those of steps within a step not counted twice."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.inner = [0.0]

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self.inner.append(0.0)
            try:
                return function(*given, **named)
            finally:
                taken = time.perf_counter() - began
                self.seconds[step] += taken - self.inner.pop()
                self.inner[-1] += taken

        return call


def in_worker(side: Any, number: int) -> dict[str, int]:
    """The profile of a side in a process that begins as its loader's do."""
    context = multiprocessing.get_context("fork")
    found = context.SimpleQueue()

    def work() -> None:
        torch.set_num_threads(1)
        if not isinstance(side, Reference):
            keep_freed_memory()
        found.put(profile(side, number))

    process = context.Process(target=work)
    process.start()
    profiled: dict[str, int] = found.get()
    process.join()
    return profiled


def profile(side: Any, number: int) -> dict[str, int]:
    """Microseconds of a view by step."""
    clock = Clock()
    steps = reference_steps(side, clock) if isinstance(side, Reference) else attar_steps(side, clock)
    batches = [range(start, start + PROFILED_BATCH) for start in range(0, number, PROFILED_BATCH)]
    with steps as make:
        for places in (batches[0], *batches):  # the first once more, to warm up
            if places is batches[0]:
                clock.seconds.clear()
            clock.timed("batch and else", make)(places)
    return {step: round(1e6 * seconds / (len(batches) * PROFILED_BATCH)) for step, seconds in clock.seconds.items()}


@contextlib.contextmanager
def reference_steps(side: Reference, clock: Clock) -> Iterator[Callable[[range], Any]]:
    """Makes a batch of the reference, each step timed."""
    names = {
        "RandomResizedCropAndInterpolation": "cut and resize",
        "RandomHorizontalFlip": "flip",
        "RandAugment": "augment",
        "RandomErasing": "erase",
    }
    compose = side.images.transform
    timed = [clock.timed(names.get(type(step).__name__, "tensor, normalise"), step) for step in compose.transforms]
    with (
        mock.patch.object(side.images, "loader", clock.timed("read, decode", side.images.loader)),
        mock.patch.object(compose, "transforms", timed),
    ):
        yield lambda rows: default_collate([side[row % len(side)] for row in rows])


@contextlib.contextmanager
def attar_steps(side: ViewDataset, clock: Clock) -> Iterator[Callable[[range], Any]]:
    """Makes a batch of attar, each step timed."""
    steps: dict[str, list[tuple[Any, str]]] = {
        "read, decode": [(side.source, "read"), (loader, "open_image"), (decode.EncodedImage, "_pixels")],
        "cut and resize": [(views, "random_crop_box"), (decode.EncodedImage, "cut")],
        "flip": [(Image.Image, "transpose")],
        "augment": [(views, "rand_augment")],
        "tensor, normalise": [(views, "_planes"), (sys.modules[__name__], "normalised")],
        "erase": [(views, "random_erase"), (Erased, "fill")],
    }
    collate = loader._Collate(PROFILED_BATCH)
    with contextlib.ExitStack() as patches:
        for step, places in steps.items():
            for owner, name in places:
                patches.enter_context(mock.patch.object(owner, name, clock.timed(step, getattr(owner, name))))
        yield lambda places: normalised(collate(side.__getitems__(list(places))))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
