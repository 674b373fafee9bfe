"""What is it worth on a CPU to ask a frozen model about a batch in pieces, and how large should pieces be?

    OMP_NUM_THREADS=2 python benchmarks/pieces.py --precision fp32 bf16 --results FILE

attar asks teachers, and whatever else is frozen, about as many pixels at a time as 12 images of 224 px have
(`attar.models.cache_sized`). The reference asks about the batch at once; other lengths stand beside, in images of 224
px or as many pixels of smaller ones. All ways take turns on the same images, the order within a turn alternates;
medians of the turns' ratios to the batch at once, with lowest and highest. Weights are random, which costs the same.
That all ways say the same is tested (`tests/models/test_backbone.py`). About 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attar
from attar.methods.teacher import ask, frozen
from attar.types import Tokens, joined
from machine import given, machine

ROWS = {  # model: (pixels, images)
    "vit_tiny_patch16_224": (224, 64),
    "vit_small_patch14_dinov2": (224, 64),
    "vit_base_patch14_dinov2": (224, 32),
    "resnet50": (224, 64),
    "convnext_tiny": (224, 64),
    "mobilenetv3_large_100": (224, 64),
    "resnet10t?output_stride=8": (64, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 8, 4])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    rows = [compare(args, precision, model, *ROWS[model]) for model in args.row for precision in args.precision]
    if args.results:
        record = {
            "benchmark": "pieces",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/pieces.py {given(args)}",
            "machine": machine("timm"),
            "results": rows,
        }
        args.results.write_text(json.dumps(record, indent=2) + "\n")


@torch.no_grad()
def compare(args: argparse.Namespace, precision: str, reference: str, size: int, count: int) -> dict[str, Any]:
    """Seconds of all ways, turn by turn, and how many times as fast as the batch at once they are."""
    torch.manual_seed(0)
    teacher = frozen(attar.load_backbone(reference, weights="random", img_size=size))
    images = torch.rand(count, 3, size, size)
    ways = {"at once": partial(teacher, images), "attar": partial(ask, teacher, images)}
    ways |= {str(length): partial(in_pieces, teacher, images, length) for length in args.lengths}
    found: dict[str, list[float]] = {name: [] for name in ways}
    with torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
        for turn in range(-1, args.turns):
            for name in list(ways)[:: 1 if turn % 2 == 0 else -1]:
                started = time.perf_counter()
                ways[name]()
                if turn >= 0:  # the first one warms up
                    found[name].append(time.perf_counter() - started)
    quicker = {name: ratio(found["at once"], times) for name, times in found.items() if name != "at once"}
    told = (f"{name} {median:.2f} ({low:.2f} to {high:.2f})" for name, (median, low, high) in quicker.items())
    print(f"{reference} {size} px {precision}: {'; '.join(told)}", flush=True)
    return {
        "model": reference,
        "img_size": size,
        "batch_size": count,
        "precision": precision,
        "images_per_s": {name: round(count / statistics.median(times), 1) for name, times in found.items()},
        "times_as_fast": quicker,
    }


def in_pieces(teacher: attar.Backbone, images: Tensor, length: int) -> Tokens:
    """Tokens, asked for in even pieces of at most the pixels of `length` images of 224 px."""
    count = math.ceil(images[:, 0].numel() / (length * 224**2))
    return joined([teacher(few) for few in images.tensor_split(count)])


def ratio(reference: list[float], times: list[float]) -> tuple[float, float, float]:
    """How many times as fast: median, lowest and highest of the turns."""
    turns = [round(theirs / ours, 3) for theirs, ours in zip(reference, times, strict=True)]
    return statistics.median(turns), min(turns), max(turns)


if __name__ == "__main__":
    main()
