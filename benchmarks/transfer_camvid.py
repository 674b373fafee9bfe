"""Segmentation of road scenes from few annotated frames: is it worth to transfer, and does retrieval choose the images?

    python benchmarks/transfer_camvid.py --data DATA --out runs/transfer_camvid --results results.json
    python benchmarks/transfer_camvid.py --results results.json --table

Task: CamVid's 11 classes from 1/8 and 1/4 of its 367 training frames, a fifth of which choose steps and penalty; the
233 test frames report, and its validation frames are not used. Pool: a photo of each ImageNet class, 2,000 images of
CIFAR-10, 51 classes of Caltech, and the training frames that carry no label in the cell, under names that tell nothing.
Sets have 500 images at most, the labelled frames among them: drawn at random, or fetched by the labelled ones, where
each fetches as many and the set may fall short. What was fetched is counted by source.

Teacher: ResNet-10t at 64 px with its last map at stride 8 (4.95 M parameters); student: the same at half its width
(1.3 M). Frames are seen with a short side of 128 px, in windows of 64. Every student takes the same steps: scratch has
in its finetuning those that the others have in both stages. Rates were not searched: scratch has that of
transfer_small.py, the others' finetuning three times its. With `--adapt-mode head_then_full` the whole teacher learns
from the labels first. A finished cell is a file in `--out`, so the same command does what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

import attar
from attar.data.draws import share_of_images
from attar.data.pairs import open_annotated
from attar.data.transfer_set import IMAGES
from attar.utils.io import read_json, write_json
from machine import given, machine
from pools import hidden, link, some_of_cifar10

STUDENT = "resnet10t?channels=(32,64,128,256)&output_stride=8"
IMG_SIZE, SHORT_SIDE, BUDGET = 64, 128, 500
CROP_SCALE = [0.05, 0.75]  # of a pool image: crops of 64 px of one whose short side is 128, at 0.5 to 2 times that
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
ROWS = {
    "scratch": "labels alone",
    "random": "transfer, random set",
    "query_balanced": "transfer, retrieved set",
}
TEACHER = "teacher, adapted"
SOURCES = {"imagenet_1000": "ImageNet", "cifar10.parquet": "CIFAR-10", "caltech_51": "Caltech", "/rest/": "CamVid"}


class Study:
    """The data, the settings and the folder of finished cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.data, self.out = args, args.data.resolve(), args.out.resolve()
        settings, file = self.settings(), self.out / "settings.json"
        if file.exists() and read_json(file) != settings:
            raise SystemExit(f"{args.out} holds a study with other settings. Take another --out.")
        write_json(file, settings)

    def settings(self) -> dict[str, Any]:
        """All that shapes a figure."""
        names = ("steps", "finetune_steps", "transfer_lr", "finetune_lr", "scratch_lr", "limit")
        names += ("adapt_mode", "adapt_steps", "adapt_lr")
        given = {name: getattr(self.args, name) for name in names}
        return given | {"student": STUDENT, "img_size": IMG_SIZE, "short_side": SHORT_SIDE, "budget": BUDGET}

    def run(self) -> None:
        """Every cell that is missing; seed 0 of all rows comes first."""
        for seed in self.args.seeds:
            for share in self.args.shares:
                for row in self.args.rows:
                    self.cell(share, row, seed)

    def cell(self, share: float, row: str, seed: int) -> None:
        """One run unless its file is there; then the result file is written anew."""
        name = f"{share:g}-{row}-{seed}"
        file = self.out / "cells" / f"{name}.json"
        if not file.exists():
            print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
            started = time.perf_counter()
            place = self.prepare(share, seed)
            found = self.fetch(place, share, row, seed) if row != "scratch" else {}
            report = attar.transfer(self.config(row, seed, share, found.pop("place", None)))
            scores = {
                result.protocol["stage"]: {"miou": result.value, "ci95": result.ci95, **result.details}
                for result in report.results
                if (result.metric, result.protocol["part"]) == ("miou", "test")
            }
            about = {"row": row, "share": share, "seed": seed, "test_images": report.results[0].n}
            wall = round(time.perf_counter() - started, 1)
            write_json(file, about | found | {"scores": scores, "compute": report.compute, "wall_seconds": wall})
        write_json(self.args.results or self.out / "results.json", self.collect())

    def prepare(self, share: float, seed: int) -> Path:
        """Links to the frames: all with annotations, those with labels in a cell, and the others under other names."""
        camvid, place = self.data / "camvid", self.out / "data"
        frames = {part: open_annotated(camvid, part) for part in ("train", "test")}
        for part, pairs in frames.items():
            for pair in pairs[: self.args.limit] if part == "test" else pairs:
                link(pair.image, place / "camvid" / "images" / part / pair.image.name)
                link(pair.annotation, place / "camvid" / "annotations" / part / pair.annotation.name)
        (place / "camvid" / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
        cell = place / f"{share:g}-{seed}"
        drawn = set(share_of_images(len(frames["train"]), share, seed=seed).tolist())  # as attar transfer draws them
        for row, pair in enumerate(frames["train"]):
            known = cell / "queries" / "train" / pair.image.name
            link(pair.image, known if row in drawn else cell / "rest" / f"{hidden(pair.image.name)}.jpg")
        for pair in frames["test"]:  # guarded against
            link(pair.image, cell / "queries" / "test" / pair.image.name)
        some_of_cifar10(self.data, place / "cifar10.parquet")
        return cell

    def fetch(self, cell: Path, share: float, row: str, seed: int) -> dict[str, Any]:
        """The transfer set of a row, and what is in it."""
        places = self.data / "imagenet_1000", cell.parent / "cifar10.parquet", self.data / "caltech_51", cell / "rest"
        pool, out = self.out / "pools" / f"{share:g}-{seed}", self.out / "sets" / f"{share:g}-{row}-{seed}"
        teacher, data = str(self.data / "teachers/resnet10t_64"), [str(place) for place in places]
        attar.embed(attar.EmbedConfig.build({"model": teacher, "data": data, "out": str(pool), "device": "cpu"}))
        settings = {"pool": str(pool), "queries": str(cell / "queries"), "strategy": row, "budget": BUDGET}
        # frames of a drive look alike, and are no copies of each other
        settings |= {"duplicate_threshold": None, "seed": seed, "out": str(out), "device": "cpu"}
        report = attar.curate(attar.CurateConfig.build(settings))
        chosen = pq.read_table(out / IMAGES, columns=["part", "uri"]).to_pylist()
        sources = Counter("labelled" if row["part"] == "queries" else source_of(row["uri"]) for row in chosen)
        return {"place": str(report.out), "set_images": report.images, "sources": dict(sources)}

    def config(self, row: str, seed: int, share: float, place: str | None) -> attar.TransferConfig:
        """The run of a row."""
        args, is_scratch = self.args, row == "scratch"
        steps = args.finetune_steps + (args.steps if is_scratch else 0)
        lr = args.scratch_lr if is_scratch else args.finetune_lr
        views = {"crop_scale": CROP_SCALE}
        return attar.TransferConfig.build(
            {
                "task": "segmentation",
                "teacher": None if is_scratch else f"{self.data / 'teachers/resnet10t_64'}?output_stride=8",
                "student": STUDENT,
                "img_size": IMG_SIZE,
                "labelled": str(self.out / "data" / "camvid"),
                "labels_share": share,
                "pool": place or (),
                "pretrain": "none" if is_scratch else "task",
                "scratch": False,
                "out": str(self.out / "runs" / f"{share:g}-{row}-{seed}"),
                "device": "cpu",
                "seed": seed,
                "dense": {"short_side": SHORT_SIDE, "stride": IMG_SIZE},
                "adapt": {
                    "mode": args.adapt_mode,
                    "max_steps": args.adapt_steps,
                    "every": args.adapt_steps // 4,
                    "layer_decay": 1.0,
                    "head_lr": args.adapt_lr,
                    "optim": {"lr": args.adapt_lr},
                },
                "transfer": {
                    "max_steps": args.steps,
                    "batch_size": 32,
                    "every": args.steps,
                    "views": views,
                    "optim": {"lr": args.transfer_lr},
                },
                "finetune": {"max_steps": steps, "batch_size": 32, "optim": {"lr": lr}},
            }
        )

    def collect(self) -> dict[str, Any]:
        """All finished cells, of other commands too, with what a reader needs to repeat them."""
        return {
            "benchmark": "transfer_camvid",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/transfer_camvid.py --data DATA --out OUT {given(self.args)}",
            "machine": machine("timm"),
            "settings": self.settings(),
            "results": [read_json(path) for path in sorted((self.out / "cells").glob("*.json"))],
        }


def source_of(uri: str) -> str:
    return next(kind for key, kind in SOURCES.items() if key in uri)


def table(results: dict[str, Any]) -> str:
    """Markdown: mean IoU and IoU by class in per cent, means over seeds with half the range; sources and costs."""
    in_set = f"set: {' / '.join((*SOURCES.values(), 'labelled'))}"
    heading = ["labels", "row", "mIoU", *CLASSES, in_set, "TMACs", "s"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for share in sorted({cell["share"] for cell in results["results"]}):
        for row, name in (*ROWS.items(), ("teacher", TEACHER)):
            stage = "adapt" if row == "teacher" else "finetune"
            of_row = "query_balanced" if row == "teacher" else row
            cells = [c for c in results["results"] if (c["share"], c["row"]) == (share, of_row)]
            if cells:
                figures = ["" if row == "teacher" else text for text in (sources(cells), *costs(cells))]
                lines.append(f"| {' | '.join([f'{share:g}', name, *shares(cells, stage), *figures])} |")
    return "\n".join(lines)


def shares(cells: list[dict[str, Any]], stage: str) -> list[str]:
    scores = [cell["scores"][stage] for cell in cells]
    by_class = [[score["iou"][name] for score in scores] for name in CLASSES]
    return [
        percent([score["miou"] for score in scores]),
        *(percent([v for v in values if v is not None]) for values in by_class),
    ]


def percent(values: list[float]) -> str:
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" if values else ""


def sources(cells: list[dict[str, Any]]) -> str:
    if "sources" not in cells[0]:
        return ""
    means = [statistics.mean(c["sources"].get(kind, 0) for c in cells) for kind in (*SOURCES.values(), "labelled")]
    return " / ".join(f"{mean:.0f}" for mean in means)


def costs(cells: list[dict[str, Any]]) -> list[str]:
    stages = [cell["compute"]["stages"].values() for cell in cells]
    macs, seconds = ([sum(stage[key] for stage in cell) for cell in stages] for key in ("macs", "seconds"))
    return [f"{statistics.mean(macs) / 1e12:.1f}", f"{statistics.mean(seconds):.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets and teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer_camvid"))
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--table", action="store_true", help="print the table of a result file")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.125, 0.25], help="of the training frames")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=200, help="of the transfer")
    parser.add_argument("--finetune-steps", type=int, default=120)
    parser.add_argument("--transfer-lr", type=float, default=4e-3)
    parser.add_argument("--finetune-lr", type=float, default=3e-3)
    parser.add_argument("--scratch-lr", type=float, default=1e-2)
    parser.add_argument("--adapt-mode", default="head", help="how the teacher learns the task")
    parser.add_argument("--adapt-steps", type=int, default=120, help="where more than a head learns")
    parser.add_argument("--adapt-lr", type=float, default=1e-3, help="likewise")
    parser.add_argument("--limit", type=int, help="test frames at most, to try it out")
    args = parser.parse_args()
    if not args.table:
        if args.data is None:
            parser.error("--data is needed")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        Study(args).run()
    print(table(json.loads((args.results or args.out / "results.json").read_text())))


if __name__ == "__main__":
    main()
