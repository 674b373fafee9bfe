"""What the leak guard of `attar curate` catches and what it costs, by threshold, with a real teacher on real photos.

    python benchmarks/leak_guard.py --data SHARED/data --out benchmarks/results/DATE-leak-guard.json

Guarded: the held-back photos of the 25 Caltech classes that the teacher of `SHARED/data` never saw, in the views of
`guard_views`. Planted: each of them mirrored, cropped at random to at least 80 or 50 % of its area, encoded again as
JPEG of quality 30, or at half its size. Innocent: the other photos of the same classes, which are what retrieval wants
(some of them are the same photo twice: Caltech-101 has such), and one photo of each ImageNet class. A share is that of
images at least as similar to some guarded view as the threshold. Two minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attar.curation.search import search
from attar.curation.vectors import embed_rows, guard_views
from attar.data.decode import EncodedImage, open_image
from attar.data.sources import open_source
from attar.data.views import EvaluationView, random_crop_box
from attar.models import load_backbone
from attar.utils.seeding import numpy_generator

THRESHOLDS = (0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98)
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
        "thresholds": THRESHOLDS,
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

    def vectors(source: Any, rows: Any, view: Callable[..., Tensor]) -> Tensor:
        return embed_rows(backbone, source, rows, view)[0]

    views = guard_views(VIEW)
    bank = torch.cat([vectors(caltech, guarded, view) for view in views])
    tried = {f"caught: {name}": vectors(caltech, guarded, Planted(plant)) for name, plant in PLANTS.items()}
    tried["lost: same classes"] = vectors(caltech, others, VIEW)
    tried["lost: ImageNet"] = vectors(imagenet, np.arange(len(imagenet)), VIEW)
    shares = {name: shares_above(bank, found) for name, found in tried.items()}
    return {"guarded": len(guarded), "views": len(views), "same classes": len(others)} | shares


def is_held_back(name: str) -> bool:
    """The rule of the data's README."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 3


def shares_above(bank: Tensor, vectors: Tensor) -> list[float]:
    closest = search([(bank, torch.arange(len(bank)))], vectors, k=1).similarity[:, 0]
    return [round(float((closest >= threshold).double().mean()), 3) for threshold in THRESHOLDS]


def cropped(least: float) -> Callable[[Image.Image, int], Image.Image]:
    def crop(image: Image.Image, row: int) -> Image.Image:
        rng = numpy_generator(0, "planted", row)
        return image.crop(tuple(map(int, random_crop_box(image.size, rng, scale=(least, 1.0), ratio=(3 / 4, 4 / 3)))))

    return crop


def encoded(image: Image.Image, row: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


PLANTS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "flip": lambda image, row: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "crop of 80 % or more": cropped(0.8),
    "crop of 50 % or more": cropped(0.5),
    "JPEG of quality 30": encoded,
    "half its size": lambda image, row: image.resize((image.width // 2, image.height // 2)),
}


class Planted:
    """How the model sees a file that shows an image after something was done to it."""

    def __init__(self, change: Callable[[Image.Image, int], Image.Image]) -> None:
        self.change = change

    def __call__(self, image: EncodedImage, *, row: int = 0) -> Tensor:
        pixels = self.change(image.resized(None, image.size), row)
        return VIEW(open_image(np.asarray(pixels), name=image.name), row=row)


if __name__ == "__main__":
    main()
