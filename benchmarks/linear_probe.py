"""The 52 heads of a linear probe: trained together by attar, against trained in turn, on the same stored tokens.

    python benchmarks/linear_probe.py --out benchmarks/results/DATE-linear-probe.json

Random tokens of a ViT-S (width 384, float16 memory maps: four class tokens and the mean patch token of an image in each
of several views), batches of 512, the 13 learning rates of DINOv2's code, all four layouts.

- `together`: `train_heads`, which reads each batch once and trains all heads by one product for each layout.
- `in_turn`: 52 trainings, one after the other, each with `nn.Linear`, `cross_entropy`, `torch.optim.SGD` and
  `CosineAnnealingLR`; each reads its own batches from the same memory maps, and of them only the tokens it needs.
- `in_turn_loader`: the same with a `DataLoader` over images of the memory maps, which is what one writes first.
- `in_turn_compute`: the same with all batches of a layout in memory as float32 before the clock starts. What is left
  between it and `together` is the size of the operations; both multiply the same numbers of the same shapes.

All do the same steps in the same order from the same weights, and end in the same weights (their largest difference is
reported). Rounds alternate the sides; times are medians. `share_of_peak` sets the products of each side against the
machine's rate on large square matrices, measured beside them: no way of training the heads can be faster than 1. Five
minutes on two cores; `--classes 10` and `--classes 1000` show how the ratio depends on the size of a head: large heads
keep the cores busy by themselves.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.evaluation import DINOV2_CODE_LRS, ProbeFeatures
from attar.evaluation.probe_features import Layout
from attar.evaluation.probe_heads import ProbeHeads
from attar.evaluation.probe_training import Heads, ProbeSchedule, train_heads
from attar.utils.seeding import numpy_generator
from machine import machine

BLOCKS = 4
Trained = dict[tuple[Layout, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_240)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(record(args, store(args, Path(folder))), indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def store(args: argparse.Namespace, folder: Path) -> ProbeFeatures:
    """Tokens around class means, as float16 memory maps."""
    generator = numpy_generator(args.seed, "tokens")
    labels = generator.integers(args.classes, size=args.images)
    means = generator.standard_normal((args.classes, BLOCKS + 1, args.width), dtype=np.float32)
    shape = (args.views, args.images, BLOCKS + 1, args.width)
    tokens = np.lib.format.open_memmap(folder / "tokens.npy", mode="w+", dtype=np.float16, shape=shape)
    for view in tokens:
        view[:] = means[labels] + 2 * generator.standard_normal(shape[1:], dtype=np.float32)
    parts = {"cls": tokens[:, :, :BLOCKS], "patch": tokens[:, :, BLOCKS]}
    for name, part in parts.items():
        np.save(folder / f"{name}.npy", part)
    cls, patch = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in parts)
    return ProbeFeatures(cls, patch, torch.from_numpy(labels))


def record(args: argparse.Namespace, features: ProbeFeatures) -> dict[str, Any]:
    names = ("images", "views", "width", "classes", "batch", "epochs", "rounds", "seed")
    settings = [f"--{name} {getattr(args, name)}" for name in names] + [f"--threads {torch.get_num_threads()}"]
    return {
        "benchmark": "linear_probe",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/linear_probe.py", *settings]),
        "machine": machine("numpy"),
        "results": compare(args, features),
    }


def compare(args: argparse.Namespace, features: ProbeFeatures) -> dict[str, Any]:
    """Seconds of each side in each round, their ratios, and how far the weights are from each other."""
    schedule = ProbeSchedule(args.images, args.batch, args.epochs, args.seed)
    kept = {layout: list(batches(features, layout, schedule)) for layout in features.layouts}
    sides: dict[str, Callable[[], Trained]] = {
        "together": lambda: together(features, schedule, args),
        "in_turn": lambda: in_turn(features, schedule, args, lambda layout: batches(features, layout, schedule)),
        "in_turn_loader": lambda: in_turn(features, schedule, args, lambda layout: loader(features, layout, schedule)),
        "in_turn_compute": lambda: in_turn(features, schedule, args, lambda layout: kept[layout]),
    }
    train_one(torch.zeros(args.classes, args.width), 0.1, 1, kept[features.layouts[0]][:1])  # what optim imports late
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    trained, peaks = {}, []
    for _ in range(args.rounds):
        peaks.append(peak())
        for name, side in sides.items():
            started = time.perf_counter()
            trained[name] = side()
            seconds[name].append(round(time.perf_counter() - started, 3))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    widths = sum(features.width(layout) for layout in features.layouts) * len(DINOV2_CODE_LRS)
    products = 2 * 2 * schedule.steps * args.batch * args.classes * widths  # logits and gradient, multiply and add
    return {
        "heads": len(trained["together"]),
        "steps": schedule.steps,
        "seconds": seconds,
        "median_seconds": middle,
        **{f"{name}_over_together": round(middle[name] / middle["together"], 2) for name in sides},
        "peak_gflops": round(statistics.median(peaks) / 1e9, 1),
        "share_of_peak": {name: round(products / t / statistics.median(peaks), 3) for name, t in middle.items()},
        "largest_difference_of_weights": {n: difference(trained["together"], trained[n]) for n in sides},
        "largest_weight": max(weight.abs().max().item() for weight in trained["in_turn"].values()),
    }


def new_heads(features: ProbeFeatures, schedule: ProbeSchedule, args: argparse.Namespace) -> Heads:
    rates = [schedule.lr(lr) for lr in DINOV2_CODE_LRS]
    return {
        layout: ProbeHeads(features.width(layout), args.classes, rates, seed=args.seed, name=str(layout))
        for layout in features.layouts
    }


def together(features: ProbeFeatures, schedule: ProbeSchedule, args: argparse.Namespace) -> Trained:
    heads = new_heads(features, schedule, args)
    train_heads(heads, features, schedule)
    return {(layout, number): weight for layout, some in heads.items() for number, weight in enumerate(some.weight)}


Batches = Iterable[tuple[Tensor, Tensor]]


def in_turn(
    features: ProbeFeatures, schedule: ProbeSchedule, args: argparse.Namespace, read: Callable[[Layout], Batches]
) -> Trained:
    trained = {}
    for layout, some in new_heads(features, schedule, args).items():
        for number, (weight, lr) in enumerate(zip(some.weight, some.learning_rates.tolist(), strict=True)):
            trained[layout, number] = train_one(weight, lr, schedule.steps, read(layout))
    return trained


def train_one(weight: Tensor, lr: float, steps: int, batches: Batches) -> Tensor:
    """Weights of one head after a plain training."""
    model = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for tokens, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), labels).backward()
        optimizer.step()
        cosine.step()
    return model.weight.detach()


class Images(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """(tokens (W,) float32, label) of one image in one view; `index` is (view, row)."""

    def __init__(self, features: ProbeFeatures, layout: Layout) -> None:
        self.features, self.layout = features, layout

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        view, row = index
        cls = torch.from_numpy(np.array(self.features.cls[view][row, BLOCKS - self.layout.blocks :]))
        parts = [cls.flatten()]
        if self.layout.avgpool:
            parts.append(torch.from_numpy(np.array(self.features.mean_patch[view][row])))
        return torch.cat(parts).float(), self.features.labels[row]


def loader(features: ProbeFeatures, layout: Layout, schedule: ProbeSchedule) -> Batches:
    """The same batches by torch's loader."""
    order = [[(epoch % features.views, int(row)) for row in rows] for epoch, rows in schedule.batches()]
    return torch.utils.data.DataLoader(Images(features, layout), batch_sampler=order)


def peak(size: int = 2048, times: int = 5) -> float:
    """Multiplications and additions per second in the product of two large float32 matrices."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds)


def batches(features: ProbeFeatures, layout: Layout, schedule: ProbeSchedule) -> Batches:
    """(tokens (B, W) float32, labels) of each step; of the memory maps only what the layout reads."""
    for epoch, rows in schedule.batches():
        view = epoch % features.views
        cls = np.asarray(features.cls[view])[rows, BLOCKS - layout.blocks :]
        parts = [torch.from_numpy(cls).flatten(1)]
        if layout.avgpool:
            parts.append(torch.from_numpy(np.asarray(features.mean_patch[view])[rows]))
        yield torch.cat(parts, dim=1).float(), features.labels[rows]


def difference(one: Trained, other: Trained) -> float:
    return max((one[key] - other[key]).abs().max().item() for key in one)


if __name__ == "__main__":
    main()
