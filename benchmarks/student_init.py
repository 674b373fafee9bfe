"""Does a student do better when it starts from its teacher's weights? Random against weight selection, equal steps.

    python benchmarks/student_init.py --out runs/student_init

The teacher is the shipped playground teacher (ViT, width 128, depth 4), the only trained ViT that comes along; the
images are procedural scenes, so this judges the option and its code, not what it does for DINOv2. Student: width 64,
depth 2, the same family. Per seed three runs that differ in the start alone: random, the teacher's first layers, evenly
spaced ones. Figures: k-NN top-1 before the first step and along the way on the selection half, at the end on the report
half. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import torch

import attar
from attar.recipes.assembly import assemble
from attar.recipes.quickstart import quickstart_config
from machine import machine

STARTS: dict[str, dict[str, str]] = {
    "random": {"student_weights": "random"},
    "first layers": {"student_weights": "teacher", "student_layers": "first"},
    "uniform layers": {"student_weights": "teacher", "student_layers": "uniform"},
}


def run_config(start: str, seed: int, args: argparse.Namespace) -> attar.DistillConfig:
    """The quickstart's run with a smaller student that has the teacher's architecture (no LayerScale)."""
    return quickstart_config(str(Path(args.out) / f"{start.replace(' ', '-')}-seed{seed}")).replace(
        student="vit_tiny_patch16_224?patch_size=8&embed_dim=64&depth=2&num_heads=2",
        seed=seed,
        device="cpu",
        max_steps=args.steps,
        optim={"ema_decay": 0.0},
        monitoring={"every": max(1, args.steps // 4)},
        **STARTS[start],
    )


def measure(config: attar.DistillConfig) -> dict[str, Any]:
    """One run: k-NN before the first step, along the way and at the end, and the last loss."""
    built = assemble(config, torch.device("cpu"))
    assert built.monitor is not None
    curve = {0: dict(built.monitor.run(built.student))["knn_select"]}
    report = attar.distill(config)
    lines = [json.loads(line) for line in (report.run / "metrics.jsonl").read_text().splitlines()]
    curve |= {line["step"]: line["student_knn_select"] for line in lines if "student_knn_select" in line}
    student = next(result for result in report.results if result.role == "student")
    return {
        "start": built.student.source.weights,
        "seed": config.seed,
        "last_loss": [line["loss"] for line in lines if "loss" in line][-1],
        "knn_select_by_step": {str(step): round(value, 4) for step, value in curve.items()},
        "knn_report": {"value": student.value, "ci95": student.ci95, "n": student.n},
    }


def main() -> None:
    """Run every start with every seed, write one result file, print one line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/student_init")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    found: dict[str, Any] = {
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "machine": machine(),
        "config": run_config("random", 0, args).model_dump(mode="json", exclude={"out", "teacher"}),
        "runs": [measure(run_config(start, seed, args)) for seed in args.seeds for start in STARTS],
    }
    (Path(args.out) / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    for run in found["runs"]:
        curve = "  ".join(f"{step}: {100 * value:.1f}" for step, value in run["knn_select_by_step"].items())
        print(f"seed {run['seed']}  {run['start']:45}  k-NN {100 * run['knn_report']['value']:.1f}  {curve}")


if __name__ == "__main__":
    main()
