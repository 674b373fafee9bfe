"""k-NN of 10,000 queries against a bank of 50,000 x 512: attar's search in tiles against scikit-learn's brute force.

    python benchmarks/knn.py --out benchmarks/results/DATE-knn.json

Clustered random features: a class is a direction, rows lie around it. Both sides get the same arrays and the same
number of threads, find the 200 nearest rows by cosine similarity and let them vote with weight exp(similarity / 0.07).

- `attar`: `knn_scores` for k in 10, 20, 100, 200, top-1 and top-5, from one search.
- `scikit_learn`: `KNeighborsClassifier(200, metric="cosine", algorithm="brute", weights=...)`, fitted and asked to
  predict: k = 200 and top-1 only, so that it has less to do.
- `scikit_learn_search`: its `kneighbors` alone, no vote, to compare with `attar_search`, which is `nearest` alone.

Rounds alternate the sides in one process; times are medians. Memory is the peak of resident memory above what was
resident once the features lay in memory and the libraries were imported, in a fresh process for each side; on Linux.
The predictions of both sides for k = 200 are compared. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from attar.evaluation import knn_predict, knn_scores, nearest
from attar.evaluation.knn import KS, TEMPERATURE
from attar.utils.seeding import torch_generator
from machine import machine

K = max(KS)
NOISE = 5.0  # standard deviation of a channel, in units of the class direction's: neighbours disagree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=sorted(SIDES), help=argparse.SUPPRESS)  # what a fresh process does
    args = parser.parse_args()
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    if args.measure:
        print(json.dumps(peak(SIDES[args.measure], features(args))))
        return
    text = json.dumps(record(args), indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


def record(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "knn",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python benchmarks/knn.py", *settings(args)]),
        "machine": machine("numpy", "scikit-learn"),
        "results": compare(args),
    }


def settings(args: argparse.Namespace) -> list[str]:
    names = ("bank", "queries", "width", "classes", "rounds", "seed")
    return [f"--{name}={getattr(args, name)}" for name in names] + [f"--threads={torch.get_num_threads()}"]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, peaks and the ratios between the sides."""
    data = features(args)
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    for _ in range(args.rounds):
        for name, side in SIDES.items():
            started = time.perf_counter()
            side(data)
            seconds[name].append(round(time.perf_counter() - started, 3))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    memory = {name: fresh_peak(name, args) for name in SIDES}
    ours = knn_predict(data[0], data[1], data[2], k=K).numpy()
    return {
        "seconds": seconds,
        "median_seconds": middle,
        "scikit_learn_over_attar": round(middle["scikit_learn"] / middle["attar"], 2),
        "search_over_search": round(middle["scikit_learn_search"] / middle["attar_search"], 2),
        "peak_above_data_mb": memory,
        "share_of_equal_predictions": float((ours == scikit_learn(data)).mean()),
        "top1": {k: round(score.top1, 4) for k, score in attar(data).items()},
    }


Data = tuple[Tensor, Tensor, Tensor, Tensor]


def features(args: argparse.Namespace) -> Data:
    """(bank, its labels, queries, their labels)."""
    means = torch.randn(args.classes, args.width, generator=torch_generator(args.seed, "means"))

    def rows(name: str, count: int) -> tuple[Tensor, Tensor]:
        generator = torch_generator(args.seed, name)
        labels = torch.randint(args.classes, (count,), generator=generator)
        noise = torch.randn(count, args.width, generator=generator)
        return noise.mul_(NOISE).add_(means[labels]), labels

    return *rows("bank", args.bank), *rows("queries", args.queries)


def attar(data: Data) -> Any:
    return knn_scores(data[:2], data[2:])


def attar_search(data: Data) -> None:
    nearest(data[0], data[2], k=K)


def classifier(data: Data) -> Any:
    def weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((1 - distances - 1) / TEMPERATURE)  # shifted by the largest similarity there can be

    model = KNeighborsClassifier(K, metric="cosine", algorithm="brute", weights=weights, n_jobs=torch.get_num_threads())
    return model.fit(data[0].numpy(), data[1].numpy())


def scikit_learn(data: Data) -> Any:
    return classifier(data).predict(data[2].numpy())


def scikit_learn_search(data: Data) -> None:
    classifier(data).kneighbors(data[2].numpy())


SIDES: dict[str, Callable[[Data], Any]] = {
    "attar": attar,
    "scikit_learn": scikit_learn,
    "attar_search": attar_search,
    "scikit_learn_search": scikit_learn_search,
}


def fresh_peak(name: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--measure", name, *settings(args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def peak(side: Callable[[Data], Any], data: Data) -> float:
    """Megabytes of resident memory that a side needs at most, above what was there before."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of making the features
    side(data)
    return round(resident("VmHWM") - before, 1)


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
