"""`python -m benchmarks.faults`: one group of faults, trial by trial, and the record of it."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for what benchmarks share

from benchmarks.faults import cost, damage, embedding, fuzz, harness, hostile, kills, mutations, numbers, ranks, signals
from benchmarks.faults.harness import Trial

from machine import machine

Group = Callable[..., Iterator[Trial]]
GROUPS: dict[str, Group] = {
    "kills": kills.random_kills,
    "writes": kills.at_each_event,
    "damage": damage.damaged_checkpoints,
    "signals": signals.asked_to_stop,
    "two": signals.two_at_once,
    "numbers": numbers.not_finite,
    "embedding": embedding.killed_embedding,
    "ranks": ranks.lost_rank,
    "hostile": hostile.met,
    "fuzz": fuzz.fuzzed,
    "mutations": mutations.removed_protection,
    "cost": cost.cost_of_safety,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=sorted(GROUPS))
    parser.add_argument("--list", action="store_true", help="say what the groups are and end")
    parser.add_argument("--trials", type=int, default=20, help="how many; for exhaustive groups 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one trial, by its number")
    parser.add_argument("--folder", type=Path, help="where runs lie; those that failed stay (a temporary folder)")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    if args.list or not args.group:
        for name, group in GROUPS.items():
            print(f"{name:10}{' '.join((group.__doc__ or '').split())}")
        return 0
    folder = args.folder or Path(tempfile.mkdtemp(prefix="attar-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["ATTAR_CACHE"] = str(folder / "cache")
    harness.warm_up()
    began, done = time.monotonic(), []
    for trial in GROUPS[args.group](folder, trials=args.trials, seed=args.seed, only=args.only):
        done.append(trial)
        if not trial.has_passed:
            print(f"trial {trial.number} ({trial.fault}): {trial.verdict}: {trial.detail}", flush=True)
        elif len(done) % 10 == 0:
            print(f"{len(done)} trials, {time.monotonic() - began:.0f} s", flush=True)
    record = summary(args, done, time.monotonic() - began)
    print(json.dumps({key: value for key, value in record.items() if key != "failed"}, indent=2))
    if args.results:
        args.results.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if all(trial.has_passed for trial in done) else 1


def summary(args: argparse.Namespace, done: list[Trial], seconds: float) -> dict[str, Any]:
    """What a result file holds."""
    only = "" if args.only is None else f" --only {args.only}"
    return {
        "benchmark": "faults",
        "group": args.group,
        "date": datetime.date.today().isoformat(),
        "command": f"python -m benchmarks.faults --group {args.group} --trials {args.trials} --seed {args.seed}{only}",
        "machine": machine("safetensors"),
        "trials": len(done),
        "verdicts": dict(Counter(trial.verdict for trial in done)),
        "seconds": round(seconds, 1),
        "failed": [trial.as_json() for trial in done if not trial.has_passed],
    }


if __name__ == "__main__":
    sys.exit(main())
