"""Does `attar plan` tell what a run will take? It plans three workloads and runs them.

    python benchmarks/plan.py --data DATA --out benchmarks/results/DATE-plan.json

- distill: Proteus on CIFAR-10 train at 64 px from the ResNet-10t of DATA (as benchmarks/proteus_small.py sets it), with
  half of CIFAR-10's test images as monitor, checked ten times;
- transfer: 25 classes of Caltech with 10 labels each, as benchmarks/transfer_small.py sets them, all three stages and
  the untaught student, on a pool of images of ImageNet, CIFAR-10 and Caltech. No stage may end early;
- transfer on the playground, whose scenes are kept once they are drawn: 20 labels a class, a student with a quarter of
  the teacher's weights, six epochs of 2,000 scenes.

DATA holds cifar10/{train,test}.parquet, imagenet_1000, caltech_51 and teachers/resnet10t_64. Plan and run each have a
fresh process, the run right after its plan, so that the machine is as busy for both; seconds are those of the call,
memory the peak of the process. The goal: time within 25 %, memory within 20 %. Two cores: about 15 minutes; with
--steps 10 one, to try the script.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transfer_small
from machine import machine

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim={0}&depth={1}&num_heads=4&init_values=1.0"
VIEWS = {"crop_scale": [0.4, 1.0], "randaugment": False, "erase": 0.0, "repeats": 1}
WITHIN = {"seconds": 0.25, "bytes": 0.20}


def distillation(data: Path, steps: int, place: Path) -> tuple[str, dict[str, Any]]:
    return "distill", {
        "teacher": f"{data / 'teachers/resnet10t_64'}?output_stride=8",
        "student": STUDENT.format(128, 4),
        "data": str(data / "cifar10/train.parquet"),
        "monitor": str(data / "cifar10/test.parquet"),
        "img_size": 64,
        "batch_size": 128,
        "max_steps": steps,
        "precision": "fp32",
        "views": VIEWS,
        "optim": {"lr": 1e-3, "clip_norm": 1.0},
        "device": "cpu",
        "workers": 1,
    }


def transfer(data: Path, steps: int, place: Path) -> tuple[str, dict[str, Any]]:
    transfer_small.prepare(data, place)
    return "transfer", {
        "teacher": str(data / "teachers/resnet10t_64"),
        "student": transfer_small.STUDENT,
        "labelled": str(place / "task/train"),
        "labels_per_class": 10,
        "val": str(place / "task/val"),
        "test": str(place / "task/test"),
        "pool": [str(data / "imagenet_1000"), str(place / "cifar10.parquet"), str(place / "rest")],
        "img_size": 64,
        "precision": "fp32",
        "transfer": {"max_steps": steps, "batch_size": 64, "optim": {"lr": 2e-3}},
        "finetune": {"max_steps": steps // 2, "patience": None},
        "device": "cpu",
        "workers": 1,
    }


def transfer_of_scenes(data: Path, steps: int, place: Path) -> tuple[str, dict[str, Any]]:
    from attar.recipes.quickstart import playground_teacher

    return "transfer", {
        "teacher": str(playground_teacher()),
        "student": STUDENT.format(96, 3),
        "labelled": "playground:3?n=1400",
        "labels_per_class": 20,
        "val": "playground:5?n=280",
        "test": "playground:4?n=1400",
        "pool": "playground:0?n=2000",
        "img_size": 64,
        "precision": "fp32",
        "transfer": {"max_steps": steps, "batch_size": 64, "optim": {"lr": 1e-3}},
        "finetune": {"max_steps": steps // 2, "patience": None},
        "device": "cpu",
        "workers": 1,
    }


WORKLOADS: dict[str, Callable[[Path, int, Path], tuple[str, dict[str, Any]]]] = {
    "distill, CIFAR-10 at 64 px": distillation,
    "transfer, Caltech at 64 px": transfer,
    "transfer, playground": transfer_of_scenes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200, help="of the distillation, and of the transfer on the pool")
    parser.add_argument("--probe-steps", type=int, default=20)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", choices=list(MEASURES), help=argparse.SUPPRESS)  # what a fresh process does
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure](*given(args), args.probe_steps)))
        return
    record = {
        "benchmark": "plan",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/plan.py --data DATA --steps {args.steps} --probe-steps {args.probe_steps}",
        "machine": machine("timm"),
        "goal": WITHIN,
        "results": [compare(name, args) for name in args.workloads],
    }
    for result in record["results"]:
        print(told(result))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The plan of a workload, and the workload."""
    with tempfile.TemporaryDirectory() as folder:
        found = {what: in_fresh_process(what, name, args, Path(folder)) for what in MEASURES}
    planned, real = found["plan"], found["run"]
    ratios = {what: round(planned[what] / real[what], 3) for what in WITHIN}
    is_within = {what: abs(ratios[what] - 1) <= WITHIN[what] for what in WITHIN}
    return {"workload": name, "planned_over_real": ratios, "is_within": is_within, **found}


def in_fresh_process(what: str, name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, "--measure", what, "--workloads", name, "--run", str(folder / "run")]
    words += ["--data", str(args.data), "--steps", str(args.steps), "--probe-steps", str(args.probe_steps)]
    print(f"{name}: {what}", flush=True)
    finished = subprocess.run(
        words, env=os.environ | {"ATTAR_CACHE": str(folder / "cache")}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def given(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    place = Path(args.run).parent / "data"
    verb, settings = WORKLOADS[args.workloads[0]](args.data.resolve(), args.steps, place)
    return verb, settings | {"out": args.run}


def settings_of(verb: str) -> Any:
    """The class of a verb's settings."""
    import attar

    return {"distill": attar.DistillConfig, "transfer": attar.TransferConfig}[verb]


def plan(verb: str, settings: dict[str, Any], probe_steps: int) -> dict[str, Any]:
    """What is said beforehand, and how long it took to say it."""
    import attar

    config = settings_of(verb).build(settings)
    begun = time.perf_counter()
    planned = attar.plan(config, attar.PlanConfig(probe_steps=probe_steps))
    took = round(time.perf_counter() - begun, 1)
    said = planned.as_json()
    return {
        "seconds": round(planned.seconds, 1),
        "bytes": said["memory"]["peak"],
        "took": took,
        "images_per_second": planned.images_per_second,
        "parts": said["parts"],
        "memory": said["memory"],
    }


def run(verb: str, settings: dict[str, Any], probe_steps: int) -> dict[str, Any]:
    """What it takes."""
    import attar
    from attar.utils.memory import forget_peak, peak_resident

    config = settings_of(verb).build(settings)
    forget_peak()
    begun = time.perf_counter()
    getattr(attar, verb)(config)
    return {"seconds": round(time.perf_counter() - begun, 1), "bytes": peak_resident()}


MEASURES = {"plan": plan, "run": run}


def told(result: dict[str, Any]) -> str:
    planned, real, ratios = result["plan"], result["run"], result["planned_over_real"]
    return (
        f"{result['workload']}: planned {planned['seconds']:.0f} s and {planned['bytes'] / 1e9:.2f} GB in"
        f" {planned['took']:.0f} s; real {real['seconds']:.0f} s and {real['bytes'] / 1e9:.2f} GB;"
        f" ratios {ratios['seconds']:.2f} and {ratios['bytes']:.2f}"
    )


if __name__ == "__main__":
    main()
