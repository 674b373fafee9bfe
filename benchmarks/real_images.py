"""Real images through `attar distill`: the real architectures for a few steps, and a real teacher long enough to judge.

    python benchmarks/real_images.py --images imagenet_1000 --cifar cifar10 --teacher resnet10t_64 --out runs/real

`--images` is a folder of photos, `--cifar` a folder with train.parquet and test.parquet (columns image, label),
`--teacher` a timm directory trained at 64 px. Two runs:

224px   vit_small_patch14_dinov2 (random weights unless --dinov2 FILE) to ViT-Ti/14, 224 px, 20 steps: the machinery at
        real sizes. With random weights it says nothing about quality.
cifar   the given teacher to a ViT of width 128, depth 4, patch 8 at 64 px: k-NN of student, teacher, random student.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import attar
from machine import machine


def run_224px(args: argparse.Namespace) -> attar.DistillConfig:
    """DINOv2's small architecture to ViT-Ti/14 on photos."""
    return attar.DistillConfig.build(
        {
            "teacher": "vit_small_patch14_dinov2",
            "teacher_weights": args.dinov2 or "random",
            "student": "vit_tiny_patch16_224?patch_size=14&init_values=1.0",
            "data": args.images,
            "out": str(Path(args.out) / "224px"),
            "batch_size": 16,
            "max_steps": 20,
            "log_every": 5,
        }
    )


def run_cifar(args: argparse.Namespace) -> attar.DistillConfig:
    """A real-image conv teacher to a small ViT on CIFAR-10."""
    return attar.DistillConfig.build(
        {
            "teacher": args.teacher,
            "student": "vit_tiny_patch16_224?patch_size=8&embed_dim=128&depth=4&num_heads=4&init_values=1.0",
            "data": str(Path(args.cifar) / "train.parquet"),
            "monitor": args.cifar,
            "out": str(Path(args.out) / "cifar"),
            "img_size": 64,
            "batch_size": 64,
            "max_steps": args.cifar_steps,
            "seed": args.seed,
            "proteus": {"resample_tokens": True},
            "views": {"crop_scale": [0.4, 1.0], "randaugment": False, "erase": 0.0, "repeats": 1},
            "optim": {"lr": 1e-3, "ema_decay": 0.998, "clip_norm": 1.0},
            "monitoring": {"crop_pct": 1.0, "limit": 4000, "every": max(1, args.cifar_steps // 4)},
            "log_every": 50,
        }
    )


def measure(config: attar.DistillConfig) -> dict[str, Any]:
    """Run one distillation and gather what a reader needs to believe it."""
    started = time.perf_counter()
    report = attar.distill(config)
    steps = [json.loads(line) for line in (report.run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in steps if "loss" in line]
    return {
        "config": config.model_dump(mode="json", exclude={"data", "monitor", "out", "teacher"}),
        "teacher": Path(config.teacher).name,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "loss_first_and_last": [losses[0], losses[-1]],
        "verdict": report.verdict,
        "results": [
            {k: v for k, v in asdict(r).items() if k in ("role", "value", "ci95", "n", "protocol")}
            for r in report.results
        ],
    }


def main() -> None:
    """Run both and write a dated result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--dinov2", help="official DINOv2 ViT-S/14 file")
    parser.add_argument("--out", default="runs/real")
    parser.add_argument("--cifar-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["224px", "cifar"])
    args = parser.parse_args()

    found: dict[str, Any] = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "machine": machine(),
        "seed": args.seed,
    }
    for name, make in (("224px", run_224px), ("cifar", run_cifar)):
        if args.only in (None, name):
            found[name] = measure(make(args))
    Path(args.out).mkdir(parents=True, exist_ok=True)
    (Path(args.out) / "results.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
