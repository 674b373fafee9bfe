"""How much does the proxy data matter? 20, 50 and 100 % of the images, and crops of one image, in equally many steps.

    python benchmarks/proxy_data.py --data DATA --out runs/proxy_data --results results.json
    python benchmarks/proxy_data.py --results results.json --table

DATA as for proteus_small.py, and imagenet_1000, photos of which the one with the largest file is cropped. Student and
teacher are those of proteus_small.py, and so are the terms that did best there in a run of this length, token and
feature. The whole is a tenth of CIFAR-10 train, so that even the short run sees each image a dozen times. Views are
DeiT's crops (from 8 % of the area) for all rows. Finished trainings and measurements are files in `--out`; a second
start does what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attar.data.sources import open_source
from attar.utils.io import read_json, write_json
from machine import machine
from proteus_small import PROBE_SEED, STUDENT, VIEWS, Study, add_options, command, share

STEPS = 400  # 51,200 views
WHOLE = 0.1  # of CIFAR-10 train: 5,000 images
SHARES = {"images_20": 0.2, "images_50": 0.5, "images_100": 1.0}
CROP_SCALE = [0.08, 1.0]
TERMS = {"patch_weight": 0.0}
NAMES = {
    "random": "random student",
    "images_20": "20 % of the images (1,000)",
    "images_50": "50 % (2,500)",
    "images_100": "100 % (5,000)",
    "one_image": "crops of one photo",
    "teacher": "teacher, 8 x 8 tokens",
}
PAPER = {"images_20": "84.9", "images_50": "85.6", "images_100": "85.8", "one_image": "68.7"}
"""Mean of 12 fine-grained sets, S/14 from DINOv2-B/14; the first two read off a figure, epochs or steps unknown."""

COLUMNS = {  # heading -> (column, figure)
    "CIFAR-10 linear": ("cifar10", "linear_top1"),
    "k-NN": ("cifar10", "knn_top1"),
    "25 unseen classes linear": ("caltech_unseen", "linear_top1"),
    "k-NN ": ("caltech_unseen", "knn_top1"),
}


class ProxyStudy(Study):
    """The same student and teacher on less and less data."""

    def settings(self) -> dict[str, Any]:
        return {
            **super().settings(),
            "rows": {row: self.proxy(row) for row in (*SHARES, "one_image")},
            "views": VIEWS | {"crop_scale": CROP_SCALE},
            "proteus": TERMS,
        }

    def run(self, rows: list[str], seeds: list[int], write: Callable[[], None]) -> None:
        """Every cell that is missing; `write` is called after each."""
        self.columns = {name: self.columns[name] for name in ("cifar10", "caltech_unseen")}
        self.judge("teacher", 0, lambda: self.load(f"{self.teacher}?output_stride=8"), write)
        for seed in seeds:
            self.judge("random", seed, lambda s=seed: self.load(STUDENT, weights="random", seed=s), write)
            for row in rows:
                self.cell(f"training-{row}-{seed}", lambda r=row, s=seed: self.train(r, s), write)
                student = self.out / "runs" / f"{row}-{seed}" / "student"
                self.judge(row, seed, lambda s=student: self.load(str(s)), write)

    def train(self, row: str, seed: int) -> dict[str, Any]:
        """One distillation; an interrupted one goes on."""
        data, views = str(self.data / self.proxy(row)), VIEWS | {"crop_scale": CROP_SCALE}
        return self.distil(row, seed, {"data": data, "views": views, "proteus": TERMS})

    def proxy(self, row: str) -> str:
        """What the row learns from, as a reference below the data folder."""
        if row in SHARES:
            return f"cifar10/train.parquet?images={WHOLE * SHARES[row]:g}&subset_seed={PROBE_SEED}"
        photos = open_source(str(self.data / "imagenet_1000"))
        largest = max(range(len(photos)), key=lambda photo: len(photos.read(photo)))  # much detail
        return f"imagenet_1000?crops=5000&image={largest}"


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """All finished cells with what a reader needs to repeat them."""
    cells = [read_json(path) for path in sorted((Path(args.out) / "cells").glob("*.json"))]
    return {
        "benchmark": "proxy_data",
        "date": datetime.date.today().isoformat(),
        "command": command("proxy_data", args),
        "machine": machine(),
        "settings": read_json(Path(args.out) / "settings.json"),
        "paper": {row: {"fine_grained": value} for row, value in PAPER.items()},
        "trainings": [c for c in cells if "loss_curve" in c],
        "results": [c for c in cells if "column" in c],
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: mean over seeds in per cent, with half the range over seeds; the paper's figures beside."""
    heading = ["trained on", *(name.strip() for name in COLUMNS), "paper's fine-grained mean"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for row, name in NAMES.items():
        figures = [
            share([c[key] for c in results["results"] if (c["row"], c["column"]) == (row, column)])
            for column, key in COLUMNS.values()
        ]
        lines.append(f"| {' | '.join([name, *figures, PAPER.get(row, '')])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/proxy_data", steps=STEPS)
    args = parser.parse_args()
    file = args.results or Path(args.out) / "results.json"
    if args.table:
        print(table(json.loads(file.read_text())))
        return
    if args.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    study = ProxyStudy(args)

    def write() -> None:
        write_json(file, collect(args))

    study.run([*SHARES, "one_image"], args.seeds, write)
    write()
    print(table(read_json(file)))


if __name__ == "__main__":
    main()
