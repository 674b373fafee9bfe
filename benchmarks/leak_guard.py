"""What the leak guard of `attar curate` catches and what it costs, with a real teacher on real photos.

    python benchmarks/leak_guard.py --data SHARED/data --out benchmarks/results/DATE-leak-guard.json

Guarded: the held-back photos of the 25 Caltech classes that the teacher of `SHARED/data` never saw, in the views of
`guard_views`. Planted: each of them mirrored, cropped at random to at least 80 or 50 % or to 25 % of its area, encoded
again as JPEG of quality 30, at half its size, or all together (25 %, stretched to a square, mirrored, brighter, JPEG).
Innocent: the other photos of the same classes, which are what retrieval wants (some of them are the same photo twice:
Caltech-101 has such), and one photo of each ImageNet class. A share is that of images taken for copies: by similarity,
for each threshold, and by similarity or pixels, with the suspect threshold that is the default. Six minutes on two
cores that others use, too.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attar.config import CurateConfig
from attar.curation.screen import Guarded, Pixels, leaks_among
from attar.curation.search import search
from attar.curation.vectors import embed_rows, guard_views
from attar.data.base import Source
from attar.data.decode import open_image
from attar.data.sources import open_source
from attar.data.views import EvaluationView, random_crop_box
from attar.models import load_backbone
from attar.utils.seeding import numpy_generator
from machine import machine

THRESHOLDS = (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
WITH_PIXELS = (0.94, 0.97)
SUSPICION = CurateConfig.model_fields["suspect_threshold"].default
VIEW = EvaluationView(64, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {
        "benchmark": "leak_guard",
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/leak_guard.py --data SHARED/data",
        "machine": machine(),
        "thresholds": THRESHOLDS,
        "suspect_threshold": SUSPICION,
        "thresholds with pixels": WITH_PIXELS,
        "results": measure(args.data),
    }
    text = json.dumps(found, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(data: Path) -> dict[str, Any]:
    backbone = load_backbone(str(data / "teachers/resnet10t_64"), img_size=64)
    caltech, imagenet = open_source(str(data / "caltech_51")), open_source(str(data / "imagenet_1000"))
    labels = caltech.labels()
    assert labels is not None
    is_new = labels[0] >= 26  # the teacher learned from the first 26
    is_held = np.array([is_held_back(caltech.name(row)) for row in range(len(caltech))])
    guarded, others = np.flatnonzero(is_new & is_held), np.flatnonzero(is_new & ~is_held)

    views = guard_views(VIEW)
    bank, positions = embed_rows(backbone, caltech, guarded, *views)
    shows = guarded[positions.numpy()]
    names = tuple(caltech.name(row) for row in shows)
    sets: dict[str, tuple[Any, Any]] = {
        f"caught: {name}": (Planted(caltech, plant), guarded) for name, plant in PLANTS.items()
    }
    sets["lost: same classes"] = caltech, others
    sets["lost: ImageNet"] = imagenet, np.arange(len(imagenet))
    found: dict[str, Any] = {}
    total, seconds = 0, 0.0
    for name, (source, rows) in sets.items():
        vectors, _ = embed_rows(backbone, source, rows, VIEW)
        pixels = Pixels(SUSPICION, source, caltech, shows)
        started = time.perf_counter()
        leaks, suspects, pairs = leaks_among(Guarded(bank, names, max(WITH_PIXELS), pixels), vectors, rows)
        took = time.perf_counter() - started
        total, seconds = total + pairs, seconds + took
        similarity = search([(bank, torch.arange(len(bank)))], vectors, k=1).similarity[:, 0]
        is_part = torch.zeros(len(rows), dtype=torch.bool)
        is_part[[position for position, leak in leaks.items() if leak.found_by == "pixels"]] = True
        found[name] = {
            "similarity alone": [share(similarity >= threshold) for threshold in THRESHOLDS],
            "with pixels": [share((similarity >= threshold) | is_part) for threshold in WITH_PIXELS],
            "suspects": suspects,
            "pairs": pairs,
            "seconds": round(took, 1),
        }
        if name == "lost: same classes":
            found["found by pixels: same classes"] = {
                source.name(int(rows[position])): leak.like
                for position, leak in leaks.items()
                if leak.found_by == "pixels" and similarity[position] < WITH_PIXELS[0]
            }
    speed = {"pairs": total, "seconds": round(seconds, 1), "pairs per second": round(total / seconds)}
    return {"guarded": len(guarded), "views": len(views), "same classes": len(others), "comparing": speed} | found


def share(is_one: Tensor) -> float:
    return round(float(is_one.double().mean()), 3)


def is_held_back(name: str) -> bool:
    """The rule of the data's README."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 3


def cropped(least: float, most: float = 1.0) -> Callable[[Image.Image, int], Image.Image]:
    def crop(image: Image.Image, row: int) -> Image.Image:
        rng = numpy_generator(0, "planted", row)
        left, top, right, bottom = random_crop_box(image.size, rng, scale=(least, most), ratio=(3 / 4, 4 / 3))
        return image.crop((int(left), int(top), int(right), int(bottom)))

    return crop


def encoded(image: Image.Image, row: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def everything(image: Image.Image, row: int) -> Image.Image:
    part = cropped(0.25, 0.25)(image, row).resize((96, 96)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encoded(part.point(lambda value: min(255, int(1.15 * value))), row)


PLANTS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "flip": lambda image, row: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop of 80 % or more": cropped(0.8),
    "crop of 50 % or more": cropped(0.5),
    "crop of 25 %": cropped(0.25, 0.25),
    "JPEG of quality 30": encoded,
    "half its size": lambda image, row: image.resize((image.width // 2, image.height // 2)),
    "crop of 25 %, square, mirrored, brighter, JPEG": everything,
}


class Planted:
    """A source whose images something was done to."""

    def __init__(self, source: Source, change: Callable[[Image.Image, int], Image.Image]) -> None:
        self.source, self.change = source, change

    def read(self, row: int) -> NDArray[np.uint8]:
        image = open_image(self.source.read(row), name=self.name(row))
        return np.asarray(self.change(image.resized(None, image.size), row))

    def name(self, row: int) -> str:
        return self.source.name(row)


if __name__ == "__main__":
    main()
