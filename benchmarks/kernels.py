"""What channels last and plain attention are worth: attar's backbone against the same timm model as it comes.

    python benchmarks/kernels.py --precision fp32 bf16 --results FILE

Convolutional nets get their images with channels last; ViTs of few tokens attend by two products in place of the fused
kernel where they run in bf16 on a CPU. The reference normalises and calls `forward_features` of a copy of the module,
channels first as images come. Both sides take turns on the same images, the order within a turn alternates; medians of
the turns, and of their ratios with lowest and highest. A row is a forward pass in eval mode, as of a teacher, or
forward and backward in training mode, as of a student. Weights are random, which costs the same. That both say the same
is tested (`tests/models/test_backbone.py`).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attar
from machine import given, machine

ROWS = [  # model, pixels, images, whether it trains
    ("resnet10t?output_stride=8", 64, 64, False),
    ("resnet10t", 64, 64, True),
    ("resnet50", 224, 16, False),
    ("resnet50", 224, 8, True),
    ("convnext_atto", 128, 32, True),
    ("efficientnet_b0", 128, 16, True),
    ("mobilenetv3_small_100", 128, 32, False),
    ("mobilenetv3_small_100", 128, 32, True),
    ("vit_tiny_patch16_224?patch_size=8&embed_dim=128&depth=4&num_heads=4", 64, 128, True),
    ("vit_small_patch16_224", 224, 8, True),
    ("vit_base_patch16_224", 224, 8, False),
    ("vit_small_patch14_dinov2", 224, 8, True),
    ("swin_tiny_patch4_window7_224", 224, 4, True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    rows = [compare(args, precision, *row) for row in ROWS for precision in args.precision]
    if args.results:
        record = {
            "benchmark": "kernels",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/kernels.py {given(args)}",
            "machine": machine("timm"),
            "results": rows,
        }
        args.results.write_text(json.dumps(record, indent=2) + "\n")


def compare(
    args: argparse.Namespace, precision: str, reference: str, size: int, count: int, is_training: bool
) -> dict[str, Any]:
    """Milliseconds of both sides, turn by turn."""
    torch.manual_seed(0)
    backbone = attar.load_backbone(reference, weights="random", img_size=size).to(args.device).train(is_training)
    model: Any = copy.deepcopy(backbone.model)
    images = torch.rand(count, 3, size, size, device=args.device)
    kind = torch.device(args.device).type

    def ours() -> Tensor:
        return backbone(images).patch

    def plain() -> Tensor:
        features: Tensor = model.forward_features((images - backbone.mean) / backbone.std)
        return features

    def run(forward: Callable[[], Tensor]) -> float:
        synchronise(args.device)
        started = time.perf_counter()
        with torch.set_grad_enabled(is_training), torch.autocast(kind, torch.bfloat16, precision == "bf16"):
            found = forward()
        if is_training:
            found.float().square().mean().backward()
        synchronise(args.device)
        taken = 1e3 * (time.perf_counter() - started)
        for side in (backbone, model):
            side.zero_grad(set_to_none=True)
        return taken

    sides = {"attar": ours, "plain": plain}
    for side in sides.values():
        run(side)  # what is done once
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.turns):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            found[name].append(run(sides[name]))
    ratios = [plain / ours for ours, plain in zip(found["attar"], found["plain"], strict=True)]
    row = {
        "model": reference,
        "img_size": size,
        "batch_size": count,
        "training": is_training,
        "precision": precision,
        "ms": {name: round(statistics.median(times), 2) for name, times in found.items()},
        "times_as_fast": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }
    print(
        f"{reference} {size} px {'train' if is_training else 'eval'} {precision}: plain {row['ms']['plain']:.0f} ms,"
        f" attar {row['ms']['attar']:.0f} ms, {row['times_as_fast']:.2f} times as fast"
        f" ({row['low']:.2f} to {row['high']:.2f})",
        flush=True,
    )
    return row


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
