"""Seconds until a student is as good as the paper's recipe makes it in a budget: two baselines and what may beat them.

    python benchmarks/time_to_quality.py --data DATA --out runs/time_to_quality --budget 900 --results results.json
    python benchmarks/time_to_quality.py --results results.json --table

DATA as for proteus_small.py, whose teacher and student these are; images are CIFAR-10 train at 64 px. A row is P0, the
recipe taken literally; P1, which has its schedule and learning rate repaired; changes to P1 by name, joined by `+`
(see `CHANGES`); or `fast`, the recipe of that name as it ships. All rows run on attar's own step, so that what is
compared are recipes, not code.

Each cell is one complete schedule of a row, as long as a share of the budget (`--horizons`): never a point within a
longer one. How many steps that is says `attar plan`, which times each row once for all of its learning rates, outside
of the clock (in processor time with `--budget-clock cpu`, where others use the machine too; give one thread a process
then). What counts is the clock of the cell itself: wall time and processor time of the whole of `attar distill`, from
open data to the written student, with cache, statistics and compiling, and without k-NN, which comes afterwards and for
which no run is held up. Nothing is resumed: an interrupted cell begins anew.

k-NN of CIFAR-10 test images has two halves, one to choose rows by and one to report. `time at Q` is interpolated
between the horizons around it, Q being the baseline's k-NN at the whole budget, mean of its seeds, for P1 at the best
of the rates and batch sizes that were run there. Intervals (90 %) are drawn over seeds and images, the same images for
all rows. Cells are files in `--out`; a second start does what is missing, and several processes with one `--out` share
the work.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import attar
from attar.config.flags import merge
from attar.data.labelled import Labelled
from attar.evaluation import knn_predict
from attar.evaluation.embedding import MonitorViews, embed
from attar.recipes.planning.distill import plan_distill
from attar.recipes.proteus import RECIPES, from_recipe
from attar.utils.io import read_json, read_lines, write_json
from attar.utils.locks import alone_at, take_lock
from attar.utils.seeding import numpy_generator
from machine import given, machine
from proteus_small import CIFAR_TRAIN, IMG_SIZE, STUDENT, everything_in, is_held_back

BATCH_SIZE, EPOCH = 128, 49_920  # views of a step, of an epoch of 50,000 images (whole groups of 256)
LR, WARMUP = 1e-3, 0.03  # of P1, the share of its steps
HORIZONS = (0.05, 0.1, 0.2, 0.33, 0.5, 0.75, 1.0)
NEIGHBOURS, DRAWS = 10, 1000
LONG = 20_000  # steps that a plan is made for, in which all of its phases come

PAPER: dict[str, Any] = {
    "optim": {"schedule": "paper", "ema_warmup": False},
    "proteus": {"mask_rule": "paper"},
    "normalisation": "imagenet",
}
"""P0: as released. All else is the paper's by default: DeiT's views, three terms, 5 epochs of warm-up, 5e-4 per 512."""

REPAIRED: dict[str, Any] = {
    "optim": {"lr": LR, "min_lr": 0.0, "betas": [0.9, 0.95], "clip_norm": 1.0, "ema_decay": 0.0},
}
"""P1: the rate moves by step, warms up in 3 % of the steps and falls to zero; no average, random masks."""

CHANGES: dict[str, dict[str, Any]] = {
    **{f"lr_x{factor}": {"lr_times": float(factor)} for factor in ("0.25", "0.5", "2", "5", "10", "20")},
    "beta2_99": {"optim": {"betas": [0.9, 0.99]}},
    "beta2_999": {"optim": {"betas": [0.9, 0.999]}},
    "plain_views": {"views": {"crop_scale": [0.4, 1.0], "randaugment": False, "erase": 0.0, "repeats": 1}},
    "no_masked": {"proteus": {"patch_weight": 0.0}},
    "quarter_masked": {"proteus": {"mask_probability": 0.25}},
    "standardised": {"proteus": {"standardise_targets": True}},
    "muon": {"optim": {"algorithm": "muon"}},
    "cached_1": {"cached_views": 1, "cache": {"format": "int8"}},
    "cached_2": {"cached_views": 2, "cache": {"format": "int8"}},
    "small_first": {"student": f"{STUDENT}&dynamic_img_size=true", "proteus": {"small_size": 32, "small_share": 0.5}},
    "tenth": {"images": 0.1},
    **{f"batch_{size}": {"batch_size": size} for size in (32, 64, 256)},
    "wider": {"student": STUDENT.replace("embed_dim=128&depth=4&num_heads=4", "embed_dim=256&depth=6&num_heads=8")},
}
"""What is tried, over P1. `lr_times` multiplies its learning rate, `images` is the share of them to learn from; `wider`
is another student, six times as large."""

SCREENED = [
    *("P0", "P1", "lr_x0.25", "lr_x0.5", "lr_x2", "lr_x5", "beta2_99", "beta2_999"),
    *("plain_views", "no_masked", "quarter_masked", "standardised", "cached_1", "cached_2", "small_first"),
    *("muon", "muon+lr_x2", "muon+lr_x5", "muon+lr_x10", "muon+lr_x20", "batch_64", "batch_256+lr_x2", "fast"),
]


def settings_of(row: str, steps: int) -> dict[str, Any]:
    """What makes a row, in so many steps."""
    if row == "P0":
        return PAPER
    if row == "fast":
        own, other = (RECIPES[name](data=".", out=".").model_dump(mode="json") for name in ("fast", "proteus_ti"))
        own["max_steps"], own["epochs"] = other["max_steps"], other["epochs"]  # as long as the cell is
        return {"recipe": "fast"} | {name: value for name, value in own.items() if value != other[name]}
    names = [] if row == "P1" else row.split("+")
    settings, rate = REPAIRED, LR
    for name in names:
        change = dict(CHANGES[name])
        rate *= change.pop("lr_times", 1.0)
        settings = merge(settings, change)
    epoch = EPOCH * settings.get("images", 1.0) / settings.get("batch_size", BATCH_SIZE)  # in steps
    return merge(settings, {"optim": {"lr": rate, "warmup_epochs": WARMUP * steps / epoch}})


class Race:
    """The data, the judge, and the folder of finished cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.data, self.out = args, args.data, args.out
        self.judge = Judge(self.data, limit=args.limit, workers=args.workers)
        self.out.mkdir(parents=True, exist_ok=True)
        file, settings = self.out / "settings.json", self.settings()
        with alone_at(self.out / ".settings"):
            if file.exists() and read_json(file) != settings:
                raise SystemExit(f"{self.out} holds cells of other settings. Take another --out.")
            write_json(file, settings)

    def settings(self) -> dict[str, Any]:
        """All that shapes a cell beside row, horizon and seed."""
        args = self.args
        return {
            **{
                name: vars(args)[name] for name in ("budget", "budget_clock", "precision", "device", "compile", "limit")
            },
            "threads": torch.get_num_threads(),
            "workers": args.workers,
            "student": STUDENT,
            "teacher": "resnet10t_64?output_stride=8",
            "img_size": IMG_SIZE,
            "batch_size": BATCH_SIZE,
            "warmup_share": WARMUP,
            "P0": PAPER,
            "P1": REPAIRED,
        }

    def config(self, row: str, steps: int, seed: int, out: Path) -> attar.DistillConfig:
        """The run of a cell."""
        args, settings = self.args, settings_of(row, steps)
        share = settings.pop("images", None)
        part = f"?images={share:g}&subset_seed=0" if share else ""
        shared = {
            "teacher": f"{self.data / 'teachers' / 'resnet10t_64'}?output_stride=8",
            "student": STUDENT,
            "data": f"{self.data / 'cifar10' / 'train.parquet'}{part}",
            "out": str(out),
            "img_size": IMG_SIZE,
            "batch_size": BATCH_SIZE,
            "max_steps": steps,
            "seed": seed,
            "device": args.device,
            "precision": args.precision,
            "compile": args.compile,
            "workers": args.workers,
            "log_every": max(1, steps // 20),
            "checkpoint": {"every": 10**9, "keep": 1},
        }
        return from_recipe(merge(shared, settings))

    def run(self, rows: Sequence[str], horizons: Sequence[float], seeds: Sequence[int]) -> Iterator[None]:
        """Every cell that is missing and that no other process is at; rows take turns."""
        self.warm_up()
        for seed in seeds:
            for horizon in horizons:
                for row in rows:
                    if self.cell(row, horizon, seed):
                        yield

    def warm_up(self) -> None:
        """What is loaded late, a GPU's context: paid before the first clock runs."""
        with tempfile.TemporaryDirectory(dir=self.out) as folder:
            attar.distill(self.config("P1", 2, 0, Path(folder) / "run"))

    def cell(self, row: str, horizon: float, seed: int) -> bool:
        """One complete schedule, judged; whether it was done here and now."""
        name = f"{row}-{horizon:g}-{seed}"
        file = self.out / "cells" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        settings = settings_of(row, LONG)  # whose warm-up is another in each cell
        if file.exists() and read_json(file).get("settings", settings) != settings:
            raise SystemExit(f"{file} is of a row {row} with other settings. Take another --out.")
        with (self.out / "cells" / f".{name}").open("a+") as held:
            if file.exists() or not take_lock(held):
                return False
            rate = self.rate(row)
            steps = max(2, steps_in(horizon * self.args.budget, rate))
            print(f"{datetime.datetime.now():%H:%M:%S} {name}: {steps} steps", flush=True)
            folder = self.out / "runs" / name
            shutil.rmtree(folder, ignore_errors=True)
            config = self.config(row, steps, seed, folder)
            report, clock = timed(lambda: attar.distill(config))
            losses = [line["loss"] for line in read_lines(report.run / "metrics.jsonl") if "loss" in line]
            found = {
                "row": row,
                "settings": settings,  # names of changes, and the recipe, may come to mean others
                "horizon": horizon,
                "seed": seed,
                "steps": steps,
                "views": steps * config.batch_size,
                "planned_seconds": round(seconds_of(steps, rate), 1),
                **clock,
                "last_loss": losses[-1],
                **self.judge(attar.load_backbone(str(report.student), img_size=IMG_SIZE).to(self.args.device)),
            }
            if self.args.keep:
                shutil.copytree(report.student, self.out / "students" / name, dirs_exist_ok=True)
            shutil.rmtree(folder)  # a cache may be large
            write_json(file, found)
        return True

    def rate(self, row: str) -> dict[str, Any]:
        """What `attar plan` says of a row's steps; once for all processes, and for all learning rates."""
        row = "+".join(name for name in row.split("+") if not name.startswith("lr_x")) or "P1"
        file = self.out / "rates" / f"{row}.json"
        with alone_at(self.out / "rates" / f".{row}"):
            if not file.exists():
                with tempfile.TemporaryDirectory(dir=self.out) as folder:
                    config = self.config(row, LONG, 0, Path(folder) / "out")
                    settings = attar.PlanConfig(probe_steps=self.args.probe_steps)
                    plan, clock = timed(lambda: plan_distill(config, settings, Path(folder)))
                of_clock = clock["cpu_seconds"] / clock["wall_seconds"] if self.args.budget_clock == "cpu" else 1.0
                steps = [part for part in plan.parts if part.what.startswith("training steps")]
                share = config.proteus.small_share if config.proteus.small_size else None
                phases = [[of_clock * part.seconds, part.times] for part in steps]
                fixed = of_clock * sum(part.total for part in plan.parts if part not in steps)
                write_json(file, {"row": row, "fixed": fixed, "phases": phases, "share": share})
        return read_json(file)


def seconds_of(steps: int, rate: Mapping[str, Any]) -> float:
    """How long a run of so many steps takes, as planned."""
    (first, most), *rest = rate["phases"]
    if not rest:
        return rate["fixed"] + steps * first
    begun = rate["share"] * steps if rate["share"] is not None else min(steps, most)  # else: teacher asked, then read
    return rate["fixed"] + begun * first + (steps - begun) * rest[0][0]


def steps_in(seconds: float, rate: Mapping[str, Any]) -> int:
    """How many steps a run has that takes so long: the inverse of `seconds_of`, which rises."""
    low, high = 0, 1
    while seconds_of(high, rate) <= seconds:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds_of(middle, rate) <= seconds else (low, middle)
    return low


def timed(do: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What came of it, and its seconds: wall, and processor with loader processes that have ended."""
    started, before = time.perf_counter(), os.times()
    found = do()
    cpu = sum(os.times()[:4]) - sum(before[:4])
    return found, {"wall_seconds": round(time.perf_counter() - started, 2), "cpu_seconds": round(cpu, 2)}


class Judge:
    """k-NN on CIFAR-10 test images in two halves, and on classes that the teacher never saw."""

    def __init__(self, data: Path, *, limit: int | None, workers: int) -> None:
        train, test = (everything_in(data / "cifar10" / f"{part}.parquet") for part in ("train", "test"))
        bank = numpy_generator(0, "cifar10").permutation(len(train))[:CIFAR_TRAIN]
        order = numpy_generator(0, "halves").permutation(len(test))
        parts = {"bank": train.take(np.sort(bank)[:limit]), "test": test.take(order[:limit])}
        if (data / "caltech_51").is_dir():
            unseen = unseen_classes(data / "caltech_51")
            parts |= {"unseen bank": unseen[0].take(np.arange(len(unseen[0]))[:limit]), "unseen": unseen[1]}
        self.views = MonitorViews(parts, crop_pct=1.0, workers=workers)

    def __call__(self, student: attar.Backbone) -> dict[str, Any]:
        """Figures of a student, and which test images it gets right, for intervals."""
        hits = self.hits(student, "bank", "test")
        middle = len(hits) // 2
        return {
            "knn_select": float(hits[:middle].mean()),
            "knn_report": float(hits[middle:].mean()),
            **self.unseen(student),
            "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
            "images": len(hits),
        }

    def unseen(self, student: attar.Backbone) -> dict[str, float]:
        """k-NN on the classes that the teacher never saw; nothing where DATA has no Caltech."""
        is_there = "unseen" in self.views.parts
        return {"knn_unseen": float(self.hits(student, "unseen bank", "unseen").mean())} if is_there else {}

    def hits(self, student: attar.Backbone, bank: str, queries: str) -> NDArray[np.bool_]:
        """(q,) whether a query's class is found among the bank's images."""
        known, asked = (
            embed(student, self.views.parts[name], self.views.batches(name, IMG_SIZE)) for name in (bank, queries)
        )
        return (knn_predict(*known, asked[0], k=NEIGHBOURS) == asked[1]).numpy()


def unseen_classes(folder: Path) -> tuple[Labelled, Labelled]:
    """(70 %, 30 %) of the 25 classes of Caltech that the teacher was not trained on."""
    images = everything_in(folder)
    held_back = np.array([is_held_back(images.source.name(row)) for row in range(len(images))])
    is_unseen = images.labels >= 26
    return images.take(np.flatnonzero(is_unseen & ~held_back)), images.take(np.flatnonzero(is_unseen & held_back))


# --- from cells to factors -------------------------------------------------------------------------------------------

Draws = NDArray[np.float64]


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """All finished cells, and what follows from them."""
    out = args.out
    cells = [read_json(path) for path in sorted((out / "cells").glob("*.json"))]
    kept = [{key: value for key, value in cell.items() if key != "hits"} for cell in cells]
    return {
        "benchmark": "time_to_quality",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/time_to_quality.py --data DATA --out OUT {given(args)}",
        "machine": machine("timm"),
        "settings": read_json(out / "settings.json"),
        "changes": CHANGES,
        "rates": [read_json(path) for path in sorted((out / "rates").glob("*.json"))],
        "factors": {half: {clock: factors(cells, half, clock) for clock in CLOCKS} for half in HALVES},
        "cells": kept,
    }


CLOCKS, HALVES = ("wall", "cpu"), ("select", "report")


def factors(cells: Sequence[Mapping[str, Any]], half: str, clock: str) -> dict[str, dict[str, Any]]:
    """By row: how many times sooner it is as good as each baseline at its longest horizon, with 90 % intervals.

    P1 is that of the row's student, at its best learning rate and batch size. `at_least` and `high_at_least` say that
    the factor, or the end of its interval, is a bound, as the shortest horizon is good enough already.
    """
    if not cells:
        return {}
    rng = np.random.default_rng(0)
    hits = np.stack([halves(cell)[HALVES.index(half)] for cell in cells]).astype(np.float64)  # (cells, images)
    counts = rng.multinomial(hits.shape[1], np.full(hits.shape[1], 1 / hits.shape[1]), size=DRAWS)
    by_images = np.concatenate([hits.mean(1)[None], counts @ hits.T / hits.shape[1]])  # as measured, then as drawn
    curves = {row: curve(cells, by_images, row, clock, rng) for row in dict.fromkeys(cell["row"] for cell in cells)}
    found: dict[str, dict[str, Any]] = {row: {} for row in curves}
    for row, (times, qualities) in curves.items():
        is_wider = "wider" in row.split("+")
        for base, chosen in (("P0", None if is_wider else "P0"), ("P1", best_of_p1(cells, is_wider=is_wider))):
            if chosen is None or chosen not in curves or chosen == row:
                continue
            seconds, quality = curves[chosen][0][:, -1], curves[chosen][1][:, -1]
            reached = [time_at(*point) for point in zip(times, qualities, quality, strict=True)]
            ratios = seconds / np.array(reached)
            low, high = np.quantile(ratios[1:], [0.05, 0.95])
            is_bound = qualities[:, 0] >= quality
            found[row][base] = {
                "against": chosen,
                "factor": ratios[0],
                "low": low,
                "high": high,
                "at_least": bool(is_bound[0]),
                "high_at_least": bool(is_bound[1:].mean() > 0.05),
            }
    return found


def best_of_p1(cells: Sequence[Mapping[str, Any]], *, is_wider: bool = False) -> str | None:
    """Of P1's learning rates and batch sizes at the longest horizon, the row best on the selection half."""
    rates = [cell for cell in cells if is_p1(cell["row"]) and ("wider" in cell["row"].split("+")) == is_wider]
    longest = max((cell["horizon"] for cell in rates), default=None)
    found: dict[str, list[float]] = {}
    for cell in rates:
        if cell["horizon"] == longest:
            found.setdefault(cell["row"], []).append(cell["knn_select"])
    return max(found, key=lambda row: statistics.mean(found[row]), default=None)


def is_p1(row: str) -> bool:
    """Whether a row is P1, of either student, at any learning rate and batch size."""
    return all(name in ("P1", "wider") or name.startswith(("lr_x", "batch_")) for name in row.split("+"))


def curve(
    cells: Sequence[Mapping[str, Any]], by_images: Draws, row: str, clock: str, rng: np.random.Generator
) -> tuple[Draws, Draws]:
    """(seconds, k-NN), each (1 + DRAWS, horizons) and rising in length; means over seeds, first as they are."""
    horizons = sorted({cell["horizon"] for cell in cells if cell["row"] == row})
    found = []
    for horizon in horizons:
        own = [number for number, cell in enumerate(cells) if (cell["row"], cell["horizon"]) == (row, horizon)]
        drawn = np.concatenate([np.arange(len(own))[None], rng.integers(len(own), size=(DRAWS, len(own)))])
        seconds = np.array([cells[number][f"{clock}_seconds"] for number in own])
        qualities = np.take_along_axis(by_images[:, own], drawn, axis=1)
        found.append((seconds[drawn].mean(1), qualities.mean(1)))
    return tuple(np.stack(part, axis=1) for part in zip(*found, strict=True))  # type: ignore[return-value]


def time_at(seconds: Draws, qualities: Draws, target: float) -> float:
    """When the first horizon that is good enough is so, on a line from the one before over the logarithm of time.

    The seconds of the shortest horizon where that is good enough; infinite where none is.
    """
    good = np.flatnonzero(qualities >= target)
    if not len(good):
        return math.inf
    after = int(good[0])
    if after == 0:
        return float(seconds[0])
    way = (target - qualities[after - 1]) / (qualities[after] - qualities[after - 1])
    return float(seconds[after - 1] * (seconds[after] / seconds[after - 1]) ** way)


def halves(cell: Mapping[str, Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images of the selection half and of the report half are right."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(cell["hits"]), np.uint8), count=cell["images"]).astype(bool)
    return bits[: len(bits) // 2], bits[len(bits) // 2 :]


def table(results: dict[str, Any], half: str, clock: str) -> str:
    """Markdown: k-NN at each horizon in per cent, mean over seeds, and factors with their intervals."""
    cells = results["cells"]
    horizons = sorted({cell["horizon"] for cell in cells})
    longest = [f"k-NN at {horizon:g}" for horizon in horizons]
    chosen = best_of_p1(cells)
    p1 = "P1" if chosen in (None, "P1") else f"P1 ({chosen})"
    heading = ["row", *longest, "unseen classes", "views", "sooner than P0", f"sooner than {p1}", "CPU/wall"]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for row, found in results["factors"][half][clock].items():
        own = [cell for cell in cells if cell["row"] == row]
        at = [mean(cell[f"knn_{half}"] for cell in own if cell["horizon"] == horizon) for horizon in horizons]
        last = [cell for cell in own if cell["horizon"] == max(c["horizon"] for c in own)]
        figures = ["" if math.isnan(value) else f"{100 * value:.1f}" for value in at]
        sooner = [factor_in_words(found[base]) if base in found else "" for base in ("P0", "P1")]
        busy = mean(cell["cpu_seconds"] / cell["wall_seconds"] for cell in own)
        views = f"{mean(cell['views'] for cell in last):,.0f}"
        value = mean(cell["knn_unseen"] for cell in last if "knn_unseen" in cell)
        unseen = "" if math.isnan(value) else f"{100 * value:.1f}"
        lines.append(f"| {' | '.join([row, *figures, unseen, views, *sooner, f'{busy:.2f}'])} |")
    return "\n".join(lines)


def mean(values: Iterator[float]) -> float:
    """Their mean; NaN of none."""
    found = list(values)
    return statistics.mean(found) if found else math.nan


def factor_in_words(found: Mapping[str, Any]) -> str:
    if not found["factor"]:
        return "never"
    sign, upper = ("≥ " if found[name] else "" for name in ("at_least", "high_at_least"))
    return f"{sign}{found['factor']:.2f} ({found['low']:.2f} to {upper}{found['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets and teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_quality"), help="where finished cells lie")
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--budget", type=float, default=900.0, help="seconds of the longest horizon")
    parser.add_argument("--budget-clock", choices=CLOCKS, default="wall", help="cpu where others use the machine too")
    parser.add_argument("--rows", nargs="+", default=SCREENED, help="P0, P1, fast, or names of CHANGES joined by +")
    parser.add_argument("--horizons", nargs="+", type=float, default=list(HORIZONS), help="shares of the budget")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--probe-steps", type=int, default=20, help="steps by which a row's speed is known beforehand")
    parser.add_argument("--keep", action="store_true", help="keep the students of cells done now, in OUT/students")
    parser.add_argument("--threads", type=int, help="threads of torch; by default one for each core")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="bf16")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="off")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="images of each part of the judge, to try the script")
    parser.add_argument("--table", action="store_true", help="print the table of the result file and end")
    parser.add_argument("--half", choices=HALVES, default="report", help="of the judge, for the table")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="for the table")
    args = parser.parse_args()
    file = args.results or args.out / "results.json"
    if args.table:
        print(table(json.loads(file.read_text()), args.half, args.clock))
        return
    if args.data is None:
        parser.error("--data is needed")
    changes = [row for row in args.rows if row not in ("P0", "P1", "fast")]
    if unknown := {name for row in changes for name in row.split("+")} - set(CHANGES):
        parser.error(f"no such change: {', '.join(sorted(unknown))}. Known: {', '.join(CHANGES)}; alone: P0, P1, fast")
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    for _ in Race(args).run(args.rows, args.horizons, args.seeds):
        write_json(file, collect(args))
    write_json(file, collect(args))
    print(table(read_json(file), args.half, args.clock))


if __name__ == "__main__":
    main()
