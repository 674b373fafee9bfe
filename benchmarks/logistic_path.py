"""45 penalties by one warm path against a loop of 45 cold scikit-learn fits, on real features.

    python benchmarks/logistic_path.py --data DATA --out benchmarks/results/DATE-logistic-path.json

DATA holds cifar10/{train,test}.parquet, caltech_51/CLASS/FILE and teachers/resnet10t_64. Two sets of its class-token
features: a stratified tenth of CIFAR-10 (5,000 images of train, all of test), and the 51 Caltech classes without the
images that were held back from the teacher, which are the test. A fifth of the training images, by seed, chooses.

**Equal tolerance.** Both sides stop at the same largest entry of the gradient of the same function. scikit-learn's
lbfgs minimises (1/N) sum CE + |W|^2 / (2 C N) (its `l2_reg_strength` is 1 / (C N) since the loss is a mean over
samples), which is our J with lambda = 1 / C, and gives `tol` to SciPy as `gtol`, a bound of the largest entry of that
gradient in the standardised features' own coordinates; so is ours, whatever axes it works on. scikit-learn works in
float64 (`sklearn`) or float32 (`sklearn_float32`) as its features are.

**Equal objective.** J of every head is computed again here, in float64. Where classes are told apart and lambda is
tiny, the gradient is small long before the minimum, so no two solvers end at the same value there; what counts is that
ours is nowhere higher. `worst_excess` is the largest (ours - theirs) / theirs, and `worst_difference_well_posed` the
largest difference either way where both are within 1e-6 of the minimum by |g|^2 N / (2 lambda J), the bound of a
function that bends by lambda / N at least (as J does with the bias at its best).

Times leave out features. Wall and processor seconds are medians over rounds, in which the rows take turns.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import attar
from attar.data.labelled import Labelled
from attar.data.sources import open_source
from attar.evaluation import embed_labelled
from attar.evaluation.logistic import LinearHead, Solver, logistic_path
from attar.evaluation.logistic_probe import PENALTIES, best_penalty
from attar.utils.seeding import numpy_generator
from machine import machine

MAX_ITER = 1000
WELL_POSED = 1e-6
SWITCHES: dict[str, dict[str, Any]] = {
    "attar": {},
    "attar, cold": {"warm": False},
    "attar, no extrapolation": {"extrapolate": False},
    "attar, no preconditioner": {"precondition": False},
    "attar, no rotation": {"rotate": False},
    "attar, float64": {"dtype": torch.float64},
}


@dataclass(frozen=True)
class Parts:
    """Features and classes of the three parts."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Path45:
    """Heads by lambda, strong to weak, and what they took."""

    heads: list[LinearHead]
    iterations: int
    at_cap: int
    seconds: float
    cpu_seconds: float


def ours(parts: Parts, penalties: list[float], solver: Solver) -> Path45:
    started, cpu = time.perf_counter(), time.process_time()
    fits = list(logistic_path(*parts.train, penalties, solver=solver))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    steps = [len(fit.minimum.values) - 1 for fit in fits]
    return Path45([fit.head for fit in fits], sum(steps), sum(not fit.minimum.converged for fit in fits), wall, cpu)


def theirs(parts: Parts, penalties: list[float], *, tolerance: float, dtype: str) -> Path45:
    """What a user would write: standardise once, then a loop."""
    started, cpu = time.perf_counter(), time.process_time()
    x, mean, std = standardised(parts.train[0])
    data, labels = x.numpy().astype(dtype), parts.train[1].numpy()
    models = [LogisticRegression(C=1 / p, tol=tolerance, max_iter=MAX_ITER).fit(data, labels) for p in penalties]
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    steps = [int(model.n_iter_[0]) for model in models]
    heads = [raw_head(model, mean, std) for model in models]
    return Path45(heads, sum(steps), sum(step >= MAX_ITER for step in steps), wall, cpu)


def raw_head(model: LogisticRegression, mean: Tensor, std: Tensor) -> LinearHead:
    weight = torch.from_numpy(model.coef_).double() / std
    return LinearHead(weight, torch.from_numpy(model.intercept_).double() - weight @ mean, model.C)


def standardised(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = features.double()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std < 1e-8, 1.0, std)
    return (x - mean) / std, mean, std


def objectives(parts: Parts, path: Path45, penalties: list[float]) -> tuple[list[float], list[float]]:
    """J in float64 by lambda, and a bound of its relative distance to the minimum: J is lambda / N strongly convex."""
    (x, mean, std), labels = standardised(parts.train[0]), parts.train[1]
    values, bounds = [], []
    for head, penalty in zip(path.heads, penalties, strict=True):
        weight = head.weight.double() * std
        logits = x @ weight.T + head.bias.double() + head.weight.double() @ mean
        value = F.cross_entropy(logits, labels).item() + penalty / (2 * len(x)) * weight.square().sum().item()
        residual = (logits.softmax(1) - F.one_hot(labels, logits.shape[1])) / len(x)
        gradient = residual.T @ x + penalty / len(x) * weight
        values.append(value)
        bounds.append(gradient.square().sum().item() * len(x) / (2 * penalty * value))
    return values, bounds


def judge(parts: Parts, path: Path45, penalties: list[float]) -> dict[str, Any]:
    """Penalty that the paper's rule chooses, and the accuracies there."""
    hits = {p: top1(head, parts.val) for p, head in zip(penalties, path.heads, strict=True)}
    chosen = best_penalty(hits, ties="smaller")
    larger = best_penalty(hits, ties="larger")
    return {
        "chosen_lambda": chosen,
        "chosen_lambda_ties_larger": larger,
        "val_top1": hits[chosen],
        "test_top1": top1(path.heads[penalties.index(chosen)], parts.test),
        "test_top1_ties_larger": top1(path.heads[penalties.index(larger)], parts.test),
    }


def top1(head: LinearHead, part: tuple[Tensor, Tensor]) -> float:
    return (head.predict(part[0]) == part[1]).double().mean().item()


def compare(parts: Parts, tolerance: float, args: argparse.Namespace) -> dict[str, Any]:
    """All rows at one tolerance."""
    penalties = sorted(PENALTIES, reverse=True)[:: args.every]
    solver = Solver(tolerance=tolerance, max_iter=MAX_ITER)
    rows: dict[str, Callable[[], Path45]] = {
        "sklearn": partial(theirs, parts, penalties, tolerance=tolerance, dtype="float64"),
        "sklearn_float32": partial(theirs, parts, penalties, tolerance=tolerance, dtype="float32"),
    }
    rows |= {name: partial(ours, parts, penalties, replace(solver, **change)) for name, change in SWITCHES.items()}
    runs: dict[str, list[Path45]] = {name: [] for name in rows}
    for number in range(args.rounds):
        for name, row in rows.items():
            if number < (args.rounds if name == "attar" else args.slow_rounds):
                runs[name].append(row())
                print(f"  {tolerance:g}  {name:26} {runs[name][-1].seconds:8.2f} s", flush=True)
    return {name: describe(parts, done, runs, penalties) for name, done in runs.items()}


def describe(parts: Parts, done: list[Path45], runs: dict[str, list[Path45]], penalties: list[float]) -> dict[str, Any]:
    """One row, compared with scikit-learn in float64 and with attar as it is."""
    mine, mine_bounds = objectives(parts, done[0], penalties)
    reference, bounds = objectives(parts, runs["sklearn"][0], penalties)
    excess = [(a - b) / b for a, b in zip(mine, reference, strict=True)]
    posed = [max(pair) < WELL_POSED for pair in zip(mine_bounds, bounds, strict=True)]
    cpu = statistics.median(run.cpu_seconds for run in done)
    return {
        "seconds": round(statistics.median(run.seconds for run in done), 3),
        "cpu_seconds": round(cpu, 3),
        "all_seconds": [round(run.seconds, 3) for run in done],
        "speedup_over_sklearn": ratio(runs["sklearn"], done, "seconds"),
        "cpu_speedup_over_sklearn": ratio(runs["sklearn"], done, "cpu_seconds"),
        "seconds_over_attar": ratio(done, runs["attar"], "seconds"),
        "cpu_seconds_over_attar": ratio(done, runs["attar"], "cpu_seconds"),
        "iterations": done[0].iterations,
        "penalties_not_converged": done[0].at_cap,
        "worst_excess": max(excess),
        "worst_difference_well_posed": max((abs(e) for e, ok in zip(excess, posed, strict=True) if ok), default=None),
        "well_posed": sum(posed),
        "relative_to_sklearn_by_lambda": {
            f"{p:.4g}": float(f"{e:.3g}") for p, e in zip(penalties, excess, strict=True)
        },
        **judge(parts, done[0], penalties),
    }


def ratio(slow: list[Path45], fast: list[Path45], what: str) -> float:
    a, b = (statistics.median(getattr(run, what) for run in runs) for runs in (slow, fast))
    return round(a / b, 2)


def load_parts(args: argparse.Namespace) -> dict[str, Parts]:
    """Features of both data sets."""
    data = Path(args.data)
    backbone = attar.load_backbone(str(data / "teachers" / "resnet10t_64"), weights="pretrained", img_size=64)
    cifar, cifar_test = (everything_in(data / "cifar10" / f"{part}.parquet") for part in ("train", "test"))
    caltech = everything_in(data / "caltech_51")
    held_back = np.array([is_held_back(caltech.source.name(row)) for row in range(len(caltech))])
    sets = {
        "cifar10_tenth": (stratified(cifar, 500), cifar_test),
        "caltech_51": (caltech.take(np.flatnonzero(~held_back)), caltech.take(np.flatnonzero(held_back))),
    }
    return {name: split(*(embed(backbone, part, args) for part in sets[name])) for name in args.sets}


def split(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Parts:
    """A fifth of the training images chooses."""
    order = torch.from_numpy(numpy_generator(0, "val").permutation(len(train[1])))
    fifth = len(order) // 5
    val, rest = ((train[0][rows], train[1][rows]) for rows in (order[:fifth], order[fifth:]))
    return Parts(rest, val, test)


def embed(backbone: attar.Backbone, part: Labelled, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    rows = numpy_generator(0, "limit").permutation(len(part))[: args.limit]
    return embed_labelled(backbone, part.take(np.sort(rows)), workers=args.workers)


def stratified(part: Labelled, count: int) -> Labelled:
    """`count` images of each class."""
    classes = [np.flatnonzero(part.labels == label) for label in np.unique(part.labels)]
    chosen = [numpy_generator(0, "tenth", label).permutation(rows)[:count] for label, rows in enumerate(classes)]
    return part.take(np.sort(np.concatenate(chosen)))


def everything_in(path: Path) -> Labelled:
    source = open_source(str(path))
    found = source.labels()
    assert found is not None
    return Labelled(source, np.arange(len(source)), found[0], tuple(found[1]))


def is_held_back(name: str) -> bool:
    """Whether CLASS/FILE is a test image; the teacher was trained by the same rule."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with the data sets and the teacher")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument(
        "--sets", nargs="+", choices=["cifar10_tenth", "caltech_51"], default=["cifar10_tenth", "caltech_51"]
    )
    parser.add_argument(
        "--tolerances", nargs="+", type=float, default=[1e-5, 1e-7], help="of the sweep; 1e-7 is the paper mode's"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the row `attar`")
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds of all other rows")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--limit", type=int, help="images of each part, to try the script")
    parser.add_argument("--every", type=int, default=1, help="take one penalty in so many, to try the script")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    about = machine("scikit-learn", "scipy", "numpy")
    results: dict[str, Any] = {}
    for name, part in load_parts(args).items():
        counts = {"train": len(part.train[1]), "val": len(part.val[1]), "test": len(part.test[1])}
        results[name] = {**counts, "features": part.train[0].shape[1], "by_tolerance": {}}
        for tolerance in args.tolerances:
            results[name]["by_tolerance"][f"{tolerance:g}"] = compare(part, tolerance, args)
            write(args, about, results)  # what is done is not lost
    print(table(results))


def write(args: argparse.Namespace, about: dict[str, Any], results: dict[str, Any]) -> None:
    """The result file, with all that is there so far."""
    limit = f" --limit {args.limit}" if args.limit else ""
    record = {
        "benchmark": "logistic_path",
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/logistic_path.py --data DATA"
        f" --sets {' '.join(args.sets)} --tolerances {' '.join(f'{t:g}' for t in args.tolerances)}"
        f" --rounds {args.rounds} --slow-rounds {args.slow_rounds} --every {args.every}{limit}",
        "machine": about,
        "settings": {"penalties": len(PENALTIES[:: args.every]), "max_iter": MAX_ITER, "switches": list(SWITCHES)},
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=2) + "\n")


def table(results: dict[str, Any]) -> str:
    lines = ["| data | tolerance | row | seconds | x | steps | excess | lambda | test |", "|" + "---|" * 9]
    for name, result in results.items():
        for tolerance, rows in result["by_tolerance"].items():
            for row, found in rows.items():
                lines.append(
                    f"| {name} | {tolerance} | {row} | {found['seconds']} | {found['speedup_over_sklearn']} |"
                    f" {found['iterations']} | {found['worst_excess']:.1e} | {found['chosen_lambda']:.3g} |"
                    f" {100 * found['test_top1']:.2f} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
