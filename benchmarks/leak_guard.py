"""How many planted copies of test images the leak guard catches, and how many innocent images it takes, by threshold.

    python benchmarks/leak_guard.py --data DATA --out benchmarks/results/DATE-leak-guard.json

DATA as for proteus_small.py. Guarded are 200 test images of the 25 Caltech classes that the teacher never saw, in the
views of `attar curate`. Copies of them: the file itself, mirrored, encoded again as JPEG of quality 30, at half the
size, and crops of 90, 70, 50 and 30 % of the area at places by seed. Innocent are imagenet_1000 (another photo of the
same kind may be among them) and the training images of the same 25 classes, which are as like the guarded ones as
images get.
"""

from __future__ import annotations

import argparse
import datetime
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import attar
from attar.curation.vectors import guard_views
from attar.data.decode import open_image
from attar.data.views import EvaluationView
from attar.utils.io import write_json
from attar.utils.seeding import numpy_generator
from evaluate_real import CLASSES_SEEN
from machine import machine
from proteus_small import is_held_back

THRESHOLDS = (0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99)
GUARDED = 200


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def crop(image: Image.Image, area: float, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * area**0.5)) for side in image.size)
    left, top = (
        int(generator.integers(0, whole - side + 1)) for whole, side in zip(image.size, (width, height), strict=True)
    )
    return image.crop((left, top, left + width, top + height))


def copies(path: Path) -> Iterator[tuple[str, bytes]]:
    """(kind, encoded bytes) of what someone may have made of a file."""
    image = Image.open(path).convert("RGB")
    yield "itself", path.read_bytes()
    yield "mirrored", encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    yield "JPEG of quality 30", encoded(image, "JPEG", quality=30)
    yield "half the size", encoded(image.resize((max(1, image.width // 2), max(1, image.height // 2))))
    for area in (0.9, 0.7, 0.5, 0.3):
        yield f"crop of {area:.0%}", encoded(crop(image, area, numpy_generator(0, "crop", path.name, int(100 * area))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    backbone = attar.load_backbone(str(args.data / "teachers" / "resnet10t_64"))
    view = EvaluationView(backbone.img_size, 1.0)

    @torch.no_grad()
    def embed(files: list[bytes], see: Callable[..., Tensor] = view) -> Tensor:
        parts = [torch.stack([see(open_image(file, name="")) for file in files[i : i + 64]]) for i in _starts(files)]
        return torch.cat([F.normalize(backbone.embed(part).float(), dim=1) for part in parts])

    classes = sorted(path for path in (args.data / "caltech_51").iterdir() if path.is_dir())[CLASSES_SEEN:]
    images = [image for folder in classes for image in sorted(folder.iterdir())]
    test = [image for image in images if is_held_back(f"{image.parent.name}/{image.name}")]
    guarded = [test[row] for row in sorted(numpy_generator(0, "guarded").permutation(len(test))[:GUARDED].tolist())]
    bank = torch.cat([embed([path.read_bytes() for path in guarded], see) for see in guard_views(view)])
    kinds: dict[str, list[bytes]] = {}
    for path in guarded:
        for kind, file in copies(path):
            kinds.setdefault(kind, []).append(file)
    innocent = {
        "imagenet_1000": [p.read_bytes() for p in sorted((args.data / "imagenet_1000").rglob("*")) if p.is_file()],
        "training images of the same classes": [path.read_bytes() for path in images if path not in set(test)],
    }
    rates = {
        name: {str(t): round(float((embed(files) @ bank.T >= t).any(1).double().mean()), 4) for t in THRESHOLDS}
        for name, files in (kinds | innocent).items()
    }
    found = {"benchmark": "leak_guard", "date": datetime.date.today().isoformat(), "machine": machine()}
    found |= {"command": "python benchmarks/leak_guard.py --data DATA", "guarded": len(guarded), "refused": rates}
    write_json(args.out, found)
    print("| images | " + " | ".join(map(str, THRESHOLDS)) + " |\n" + "|---" * (len(THRESHOLDS) + 1) + "|")
    for name, row in rates.items():
        print(f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in row.values()) + " |")


def _starts(files: list[bytes]) -> range:
    return range(0, len(files), 64)


if __name__ == "__main__":
    main()
