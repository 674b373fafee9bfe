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

from benchmarks.faults import (
    SLICE,
    cost,
    damage,
    embedding,
    fuzz,
    harness,
    hostile,
    kills,
    mutations,
    numbers,
    ranks,
    signals,
    verbs,
)
from benchmarks.faults.harness import Trial

from machine import machine

Group = Callable[..., Iterator[Trial]]
GROUPS: dict[str, Group] = {
    "kills": kills.random_kills,
    "writes": kills.at_each_event,
    "save": kills.at_one_save,
    "verbs": verbs.killed_verbs,
    "damage": damage.damaged_checkpoints,
    "signals": signals.asked_to_stop,
    "two": signals.two_at_once,
    "numbers": numbers.not_finite,
    "embedding": embedding.killed_embedding,
    "ranks": ranks.lost_rank,
    "hostile": hostile.met,
    "fuzz": fuzz.fuzzed,
    "mutations": mutations.removed_protection,
    "planted": mutations.planted_bugs,
    "cost": cost.cost_of_safety,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", choices=sorted(GROUPS))
    parser.add_argument("--slice", action="store_true", help="a few trials of each group that runs in seconds")
    parser.add_argument("--list", action="store_true", help="say what the groups are and end")
    parser.add_argument("--trials", type=int, default=20, help="how many; for exhaustive groups 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one trial, by its number")
    parser.add_argument("--folder", type=Path, help="where runs lie; those that failed stay (a temporary folder)")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    if args.list or not (args.group or args.slice):
        for name, group in GROUPS.items():
            print(f"{name:10}{' '.join((group.__doc__ or '').split())}")
        return 0
    folder = args.folder or Path(tempfile.mkdtemp(prefix="attar-faults-"))
    os.environ["ATTAR_CACHE"] = str(folder / "cache")
    harness.warm_up()
    wanted = SLICE if args.slice else {args.group: args.trials}
    records = [done_of(name, folder / name, args, trials) for name, trials in wanted.items()]
    if args.results:
        args.results.write_text(json.dumps(records if args.slice else records[0], indent=2) + "\n")
    return 1 if any(record["failed"] for record in records) else 0


def done_of(name: str, folder: Path, args: argparse.Namespace, trials: int) -> dict[str, Any]:
    """Do a group's trials, and say what a result file holds of them."""
    folder.mkdir(parents=True)
    began, done = time.monotonic(), []
    for trial in GROUPS[name](folder, trials=trials, seed=args.seed, only=args.only):
        done.append(trial)
        if not trial.has_passed:
            print(f"trial {trial.number} ({trial.fault}): {trial.verdict}: {trial.detail}", flush=True)
        elif len(done) % 10 == 0:
            print(f"{len(done)} trials, {time.monotonic() - began:.0f} s", flush=True)
    record = summary(name, args, trials, done, time.monotonic() - began)
    print(json.dumps({key: value for key, value in record.items() if key != "failed"}, indent=2), flush=True)
    return record


def summary(name: str, args: argparse.Namespace, trials: int, done: list[Trial], seconds: float) -> dict[str, Any]:
    """What a result file holds."""
    only = "" if args.only is None else f" --only {args.only}"
    return {
        "benchmark": "faults",
        "group": name,
        "date": datetime.date.today().isoformat(),
        "command": f"python -m benchmarks.faults --group {name} --trials {trials} --seed {args.seed}{only}",
        "machine": machine("safetensors"),
        "trials": len(done),
        "verdicts": dict(Counter(trial.verdict for trial in done)),
        "seconds": round(seconds, 1),
        **({"figures": [trial.fault for trial in done]} if name in ("cost", "embedding") else {}),
        "failed": [trial.as_json() for trial in done if not trial.has_passed],
    }


if __name__ == "__main__":
    sys.exit(main())
