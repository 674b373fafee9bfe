"""What a cache of the teacher's answers costs in quality: K views of an image in place of ever new ones.

    python benchmarks/cached_views.py --data DATA --out runs/cached_views --results results.json
    python benchmarks/cached_views.py --results results.json --table

DATA as for proteus_small.py, whose teacher, student and views these are. Two questions, in as many steps for all rows:

- Does the cache change anything at the same K? `K=2` asks the teacher anew about views that come again; `K=2, float32`
  and so on read its answers. Compared are the losses of all steps and, for float32, the weights to the last bit.
- What do few views cost? `K=1` to `K=8` against `fresh`. With 5,000 images (`--images 0.1`) even 800 steps see
  each image twenty times. `fresh loss` is the student's loss on new views of images that it never saw: it
  tells memorised views from learned ones, which the loss in training cannot.

`--recipe fast` trains by the recipe of that name, whose students learn more in as many steps, so that they have more to
lose. k-NN is that of time_to_quality.py. Each finished cell is a file in `--out`; a second start does what is missing,
and several processes with one `--out` share the work.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import attar
from attar.data.loader import ViewDataset, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from attar.recipes.assembly import Assembly, assemble
from attar.recipes.distill import training_of, views_of
from attar.recipes.kept_answers import keep_answers
from attar.recipes.proteus import from_recipe
from attar.recipes.training import train
from attar.train import TrainState, build_state
from attar.utils.distributed import pick_device, uses_bf16
from attar.utils.io import read_json, read_lines, write_json
from attar.utils.locks import alone_at, take_lock
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory
from machine import given, machine
from proteus_small import BATCH_SIZE, IMG_SIZE, OPTIM, STUDENT, VIEWS
from time_to_quality import Judge, settings_of

STEPS, IMAGES = 800, 0.1
SAME = 2  # K at which cached and uncached are compared
FRESH_BATCHES = 8

ROWS: dict[str, tuple[int | None, str | None]] = {
    "fresh": (None, None),
    **{f"K={views}": (views, None) for views in (1, 2, 4, 8)},
    **{f"K={SAME}, {form}": (SAME, form) for form in ("float32", "float16", "int8", "pca:128")},
}
"""(views of an image, how answers are kept); None: ever new ones, the teacher asked each time."""


class CacheStudy:
    """The data, the judge, and the folder of finished cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.data, self.out = args, args.data, args.out
        self.device = pick_device(args.device)
        self.judge = Judge(self.data, limit=args.limit, workers=args.workers)
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / "settings.json"
        settings = {name: vars(args)[name] for name in ("steps", "images", "precision", "device", "limit")}
        settings |= {"student": STUDENT, "img_size": IMG_SIZE, **self.learning()}
        with alone_at(self.out / ".settings"):
            if file.exists() and read_json(file) != settings:
                raise SystemExit(f"{self.out} holds cells of other settings. Take another --out.")
            write_json(file, settings)

    def learning(self) -> dict[str, Any]:
        """How all rows learn."""
        if self.args.recipe:
            return {"batch_size": BATCH_SIZE} | settings_of(self.args.recipe, self.args.steps)
        proteus = {} if self.args.terms == "all" else {"patch_weight": 0.0}
        return {"batch_size": BATCH_SIZE, "views": VIEWS, "optim": OPTIM, "proteus": proteus}

    def config(self, row: str, seed: int) -> attar.DistillConfig:
        """The run of a cell."""
        args, (views, form) = self.args, ROWS[row]
        return from_recipe(
            self.learning()
            | {
                "teacher": f"{self.data / 'teachers' / 'resnet10t_64'}?output_stride=8",
                "student": STUDENT,
                "data": f"{self.data / 'cifar10' / 'train.parquet'}?images={args.images:g}&subset_seed=0",
                "out": str(self.out / "runs" / f"{row}-{seed}"),
                "img_size": IMG_SIZE,
                "max_steps": args.steps,
                "seed": seed,
                "device": args.device,
                "precision": args.precision,
                "workers": args.workers,
                "cached_views": views,
                "cache": {"format": form} if form else {},
                "compile": "off",
                "log_every": 1,
                "checkpoint": {"every": 10**9, "keep": 1},
            }
        )

    def cell(self, row: str, seed: int) -> bool:
        """One training, judged; whether it was done here and now."""
        name = f"{row.replace(', ', '-')}-{seed}"
        file = self.out / "cells" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        with (self.out / "cells" / f".{name}").open("a+") as held:
            if file.exists() or not take_lock(held):
                return False
            print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
            write_json(
                file, {"row": row, "seed": seed, **self.trained(self.config(row, seed), is_cached=bool(ROWS[row][1]))}
            )
        return True

    def trained(self, config: attar.DistillConfig, *, is_cached: bool) -> dict[str, Any]:
        """What `attar distill` does, but that a teacher may be asked anew about views that come again."""
        folder = Path(config.out)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run = RunDirectory(folder, run_id="cell", is_new=True)
        built = assemble(config, self.device)
        state = build_state(built.method.learner, built.student, config.optim, device=self.device)
        started = time.perf_counter()
        kept = keep_answers(built, views_of(built), folder / "teacher_cache") if is_cached else None
        train(training_of(built), config, run, state, Log(run.log, is_silent=True), identity={})
        seconds = time.perf_counter() - started
        losses = [line["loss"] for line in read_lines(run.metrics) if "loss" in line]
        found = {
            "seconds": round(seconds, 1),
            "losses": losses,
            "weights": fingerprint(state),
            "fresh_loss": self.fresh_loss(built),
            "format_loses": {} if kept is None else {key: str(loss) for key, loss in kept.losses.items()},
            **self.judge(built.student.eval()),
        }
        shutil.rmtree(folder)  # a cache may be large
        return found

    @torch.no_grad()
    def fresh_loss(self, built: Assembly) -> float:
        """Mean loss on views of test images, each new, the teacher asked; masks as in training."""
        source = open_source(str(self.data / "cifar10" / "test.parquet"))
        stream = ViewDataset(source, ViewOrder(len(source), seed=0), built.config.views, IMG_SIZE)
        batches = training_batches(stream, batch_size=BATCH_SIZE, start_step=0, num_steps=FRESH_BATCHES)
        method = built.method
        method.cache = None  # type: ignore[attr-defined]  # a method with a teacher
        method.learner.eval()
        bf16 = uses_bf16(built.config.precision, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            return statistics.fmean(float(method.training_step(batch.to(self.device)).loss) for batch in batches)


def fingerprint(state: TrainState) -> str:
    """SHA-256 of all that was learned."""
    digest = hashlib.sha256()
    for _, value in sorted(state.learner.state_dict().items()):
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """All finished cells; of losses only what is compared."""
    out = args.out
    cells = [read_json(path) for path in sorted((out / "cells").glob("*.json"))]
    return {
        "benchmark": "cached_views",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/cached_views.py --data DATA --out OUT {given(args)}",
        "machine": machine("timm"),
        "settings": read_json(out / "settings.json"),
        "cells": [compared(cell, cells) for cell in cells],
    }


def compared(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell without its losses, and how far these are from those of a teacher asked anew at the same K and seed."""
    tenth = max(1, len(cell["losses"]) // 10)
    found = {key: value for key, value in cell.items() if key not in ("losses", "hits")}
    found["train_loss"] = statistics.fmean(cell["losses"][-tenth:])
    views, form = ROWS[cell["row"]]
    asked = next((c for c in cells if ROWS[c["row"]] == (views, None) and c["seed"] == cell["seed"]), None)
    if form is not None and asked is not None:
        off = [abs(a - b) / b for a, b in zip(cell["losses"], asked["losses"], strict=True)]
        found |= {
            "same_weights": cell["weights"] == asked["weights"],
            "loss_off": {"mean": statistics.fmean(off), "most": max(off), "last_tenth": statistics.fmean(off[-tenth:])},
        }
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: means over seeds with half the range; what the cache changes beside an uncached run of the same K."""
    heading = ["row", "k-NN", "unseen classes", "fresh loss", "training loss", "seconds", "losses off", "same weights"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for row in ROWS:
        own = [cell for cell in results["cells"] if cell["row"] == row]
        if not own:
            continue
        knn = [(cell["knn_select"] + cell["knn_report"]) / 2 for cell in own]
        off = [cell["loss_off"] for cell in own if "loss_off" in cell]
        figures = [
            spread([100 * value for value in knn], 1),
            spread([100 * cell["knn_unseen"] for cell in own if "knn_unseen" in cell], 1),
            spread([cell["fresh_loss"] for cell in own], 4),
            spread([cell["train_loss"] for cell in own], 4),
            f"{statistics.fmean(cell['seconds'] for cell in own):.0f}",
            f"{100 * statistics.fmean(o['mean'] for o in off):.2g} %, at most {100 * max(o['most'] for o in off):.2g} %"
            if off
            else "",
            f"{sum(cell['same_weights'] for cell in own if 'same_weights' in cell)} of {len(off)}" if off else "",
        ]
        lines.append(f"| {' | '.join([row, *figures])} |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    half = (max(values) - min(values)) / 2
    return f"{statistics.fmean(values):.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets and teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/cached_views"), help="where finished cells lie")
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--images", type=float, default=IMAGES, help="share of CIFAR-10 train to learn from")
    parser.add_argument("--terms", choices=["token_feature", "all"], help="token_feature by default")
    parser.add_argument("--recipe", choices=["fast"], help="in place of proteus_small.py's settings")
    parser.add_argument("--threads", type=int, help="threads of torch; by default one for each core")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="images of each part of the judge, to try the script")
    parser.add_argument("--table", action="store_true", help="print the table of the result file and end")
    args = parser.parse_args()
    file = args.results or args.out / "results.json"
    if args.table:
        print(table(json.loads(file.read_text())))
        return
    if args.data is None:
        parser.error("--data is needed")
    if args.recipe and args.terms:
        parser.error("--recipe says which terms there are. Leave --terms out")
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    study = CacheStudy(args)
    for seed, row in itertools.product(args.seeds, args.rows):
        if study.cell(row, seed):
            write_json(file, collect(args))
    write_json(file, collect(args))
    print(table(read_json(file)))


if __name__ == "__main__":
    main()
