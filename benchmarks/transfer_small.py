"""Task-oriented transfer on real images, small: what each ingredient is worth (`attar transfer --study`).

    python benchmarks/transfer_small.py --data DATA --out runs/transfer_small

Task: the 25 classes of Caltech that the teacher of DATA never saw, with 2 and with 10 labelled images a class; 5 images
a class choose the step (nobody learns from them, as in Apple's published splits), the 457 test images of DATA's rule
report. Pool: a photo of each ImageNet class, 2,000 images of CIFAR-10, CamVid's frames, and the images of
the 25 classes that neither choose nor report, under names that tell nothing. Sets have 500 images each, the labelled
ones among them; every row that transfers takes 250 steps of 64 views for it, and 150 of 32 at most for its finetuning,
which ends by its patience. Convolutions run in bf16, which processors with the instructions for it do in little more
than half the time. `task:OUT/ideal` transfers on 500 images of the task's own classes.

Teacher: ResNet-10t at 64 px (4.95 M parameters); student: the same at half its width (1.3 M). Scratch is given 400
steps of 32 for its finetuning, as many steps as the others have in both stages, and may end early too. Its learning
rate and that of the others' finetuning were chosen on the validation images with seed 9 (of 1e-3, 3e-3, 1e-2; of 1e-4,
3e-4, 1e-3: best mean over 2 and 10 labels).
The same command goes on where it was stopped; --rows, --labels and --seeds take part of it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from pathlib import Path

import torch

import attar
from attar.config import StudyConfig
from attar.reports.study import study_sentence, study_table
from attar.utils.io import write_text
from attar.utils.seeding import numpy_generator
from machine import given, machine
from pools import hidden, link, some_of_cifar10
from proteus_small import is_held_back

CLASSES_SEEN = 26  # the first of Caltech's, in alphabetical order, taught the teacher
VAL, BUDGET = 5, 500
STUDENT = "resnet10t?channels=(32,64,128,256)"
ROWS = ("scratch", "contrastive:query_balanced", "task:random", "task:random_by_place")
ROWS += ("task:best_match", "task:query_balanced")


def prepare(data: Path, out: Path) -> Path:
    """Links to the images of task and pool; CIFAR-10's in a Parquet file."""
    classes = sorted(path for path in (data / "caltech_51").iterdir() if path.is_dir())[CLASSES_SEEN:]
    for folder in classes:
        images = sorted(folder.iterdir())
        others = [image for image in images if not is_held_back(f"{folder.name}/{image.name}")]
        chosen = {others[k] for k in numpy_generator(0, "val", folder.name).permutation(len(others))[:VAL]}
        for image in images:
            part = "test" if image not in others else "val" if image in chosen else "train"
            link(image, out / "task" / part / folder.name / image.name)
            if part == "train":
                link(image, out / "rest" / f"{hidden(folder.name, image.name)}.jpg")
    for image in sorted((out / "rest").iterdir())[:BUDGET]:  # by hash: a draw
        link(image, out / "ideal" / image.name)
    some_of_cifar10(data, out / "cifar10.parquet")
    return out


def settings(args: argparse.Namespace, place: Path) -> StudyConfig:
    data = args.data
    scratch = {"finetune": {"max_steps": args.steps + args.finetune_steps, "optim": {"lr": args.scratch_lr}}}
    return StudyConfig.build(
        {
            "teacher": str(data / "teachers/resnet10t_64"),
            "student": STUDENT,
            "img_size": 64,
            "labelled": str(place / "task/train"),
            "val": str(place / "task/val"),
            "test": str(place / "task/test"),
            "pool": [
                str(data / "imagenet_1000"),
                str(place / "cifar10.parquet"),
                str(data / "camvid/images"),
                str(place / "rest"),
            ],
            "out": str(args.out / "study"),
            "device": "cpu",
            "precision": args.precision,
            "labels": args.labels,
            "seeds": args.seeds,
            "rows": args.rows or [*ROWS, f"task:{place / 'ideal'}"],
            "sets": {"budget": BUDGET},
            "transfer": {"max_steps": args.steps, "batch_size": 64, "optim": {"lr": args.transfer_lr}},
            "finetune": {"max_steps": args.finetune_steps, "optim": {"lr": args.finetune_lr}},
            "row_settings": {row: own for row, own in {"scratch": scratch}.items() if row in (args.rows or ROWS)},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets and teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer_small"))
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--labels", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--steps", type=int, default=250, help="of the transfer")
    parser.add_argument("--finetune-steps", type=int, default=150)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of students and teacher")
    parser.add_argument("--transfer-lr", type=float, default=2e-3)
    parser.add_argument("--finetune-lr", type=float, default=1e-3)
    parser.add_argument("--scratch-lr", type=float, default=1e-2)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    args.data, place = args.data.resolve(), args.out.resolve() / "data"
    report = attar.study(settings(args, prepare(args.data, place)))
    written = {
        "benchmark": "transfer_small",
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/transfer_small.py --data DATA --out OUT {given(args)}",
        "machine": machine("timm"),
        "sentence": study_sentence(report.study),
        "table": study_table(report.study).splitlines(),
        "results": report.study.runs,
    }
    text = json.dumps(written, indent=2)
    for folder, name in ((place, "OUT"), (args.data, "DATA")):  # figures shall not tell of this machine
        text = text.replace(str(folder), name)
    write_text(args.results or args.out / "results.json", text + "\n")


if __name__ == "__main__":
    main()
