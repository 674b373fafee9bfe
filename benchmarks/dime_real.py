"""`attar distill-vl` on real photos, small: a teacher of two towers, a student, zero-shot on CIFAR-10.

    python benchmarks/dime_real.py --data DATA --out runs/dime_real --results results.json
    python benchmarks/dime_real.py --results results.json --table

DATA as for proteus_small.py. No small CLIP of photos is here, so one is made: the image tower is the ResNet-10t of
DATA, trained with labels on CIFAR-10 and on 26 classes of Caltech, as it is; beside it a text transformer and a
bias-free projection of the images learn, from features of 10,000 images of CIFAR-10 train and of its Caltech images,
that a sentence with the name of an image's class belongs to it (cross-entropy among 36 classes). So the teacher's text
tower knows 36 names and 79 ways to say them, and no more. It has never seen the sentences it is asked with. Its linear
probe stands beside its zero-shot: the difference is what this text tower costs.

The student learns from other images of CIFAR-10 train, without labels (the image tower once had theirs), a photo of
each ImageNet class, and from sentences that belong to none of them: the 36 names in ImageNet's templates, the names of
ImageNet's classes, and sentences that show nothing. No prompt that it is judged by is among them. All of it runs
through the verbs; a finished run is not done again, so the same command does what is missing.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

import attar
from attar.data.labelled import Labelled
from attar.data.playground_sentences import UNGROUNDED
from attar.data.sources import open_source
from attar.evaluation import embed_labelled
from attar.evaluation.datasets import find_dataset, listed_names, prompt_templates
from attar.export import write_two_towers
from attar.losses.scores import cosines
from attar.models import load_backbone, with_projection
from attar.reports import read_results
from attar.train.groups import embeddings_spared
from attar.train.schedule import cosine_lr
from attar.utils.io import new_file, read_json, write_json, write_text
from attar.utils.seeding import numpy_generator
from machine import given, machine
from playground_clip import fresh_text_tower
from proteus_small import is_held_back

STUDENT, IMG_SIZE, EMBED_DIM = "test_resnet", 64, 128
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES_SEEN, TAUGHT, IMAGES = 26, 10_000, 15_000  # of Caltech; images of CIFAR-10 train for each of teacher, student
PROMPT = "a photo of a {}."
TEMPLATES = tuple(template for template in prompt_templates("imagenet80") if template != PROMPT)
VIEWS = {"crop_scale": [0.4, 1.0]}
BATCH_SIZE, TEACHER_STEPS, TEACHER_LR = 128, 1500, 1e-3
ROLES = {"teacher": "teacher", "student": "student", "random": "random student"}


class Study:
    """Data in its places, the teacher, and the runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.data, self.out = args, args.data.resolve(), args.out.resolve()
        settings, file = self.settings(), self.out / "settings.json"
        if file.exists() and read_json(file) != settings:
            raise SystemExit(f"{args.out} holds a study with other settings. Take another --out.")
        write_json(file, settings)
        self.cifar10, self.teacher = self.out / "data/cifar10", self.out / "teacher"

    def settings(self) -> dict[str, Any]:
        """All that shapes a figure."""
        given = {name: getattr(self.args, name) for name in ("steps", "lr", "student")}
        return given | {"img_size": IMG_SIZE, "images": IMAGES, "taught": TAUGHT, "text": TEXT, "prompt": PROMPT}

    def run(self) -> None:
        """What is missing; then the result file."""
        self.split_cifar10()
        if not (self.teacher / "fit.json").exists():
            self.make_teacher()
        for seed in self.args.seeds:
            run = self.out / "runs" / str(seed)
            attar.distill_vl(self.config(seed, run))
            tasks = [f"zero_shot:{self.cifar10}"] + [f"logistic:{self.cifar10}"] * (seed == self.args.seeds[0])
            judged = {"model": str(run), "tasks": tasks, "out": str(self.out / "judged" / str(seed)), "device": "cpu"}
            attar.evaluate(attar.EvaluateConfig.build(judged))
        write_json(self.args.results or self.out / "results.json", self.collect())

    def split_cifar10(self) -> None:
        """`train` with the images that teach the teacher's text tower and `test`, by name; others for the student."""
        for part in ("train", "test"):
            if not (self.cifar10 / f"{part}.parquet").exists():
                table = pq.read_table(self.data / f"cifar10/{part}.parquet")
                if part == "train":
                    order = numpy_generator(0, "split").permutation(len(table))
                    others = table.take(np.sort(order[TAUGHT : TAUGHT + IMAGES])).select(["image"])
                    with new_file(self.out / "data/images.parquet") as temporary:
                        pq.write_table(others, temporary)
                    table = table.take(np.sort(order[:TAUGHT]))
                names = pa.array([CIFAR[label] for label in table["label"].to_pylist()])
                table = pa.table({"image": table["image"], "label": names})
                with new_file(self.cifar10 / f"{part}.parquet") as temporary:
                    pq.write_table(table, temporary)

    def make_teacher(self) -> None:
        """Fit text tower and projection to the image tower's features of images whose class has a name."""
        started = time.perf_counter()
        trunk = load_backbone(str(self.data / "teachers/resnet10t_64"), img_size=IMG_SIZE)
        features, labels, names = self.labelled_features(trunk)
        image = with_projection(trunk, EMBED_DIM)
        head: Any = image.model.visual.head
        text = fresh_text_tower(TEXT, EMBED_DIM, seed=0)
        scale = fit(head, text, features, labels, names)
        card = f"# A small CLIP of photos\n\nMade by benchmarks/dime_real.py; it knows {len(names)} names.\n"
        write_two_towers(self.teacher, image, text, card=card, scale=scale)
        seconds = round(time.perf_counter() - started, 1)
        write_json(
            self.teacher / "fit.json", {"images": len(labels), "names": names, "scale": scale, "seconds": seconds}
        )

    def labelled_features(self, trunk: attar.Backbone) -> tuple[Tensor, Tensor, list[str]]:
        """(n, D) features of images that the image tower learned from, their classes, and what these are called."""
        source = open_source(str(self.cifar10 / "train.parquet"))
        labels, names = source.labels()
        cifar10 = Labelled(source, np.arange(len(source)), labels, tuple(names))
        source = open_source(str(self.data / "caltech_51"))
        labels, folders = source.labels()
        rows = np.array([row for row in range(len(source)) if not is_held_back(source.name(row))])
        rows = rows[labels[rows] < CLASSES_SEEN]
        caltech = Labelled(source, rows, labels[rows], tuple(folders))
        found = [embed_labelled(trunk, part, workers=1) for part in (cifar10, caltech)]
        features = torch.cat([part for part, _ in found])
        classes = torch.cat([found[0][1], len(names) + found[1][1]])
        return features, classes, names + [folder.replace("_", " ").lower() for folder in folders[:CLASSES_SEEN]]

    def sentences(self) -> Path:
        """Text to learn from; no prompt that anybody is judged by."""
        file = self.out / "data/sentences.txt"
        if not file.exists():
            names = read_json(self.teacher / "fit.json")["names"]
            texts = [template.format(name) for name in names for template in TEMPLATES]
            texts += [f"a picture of a {name}" for name in listed_names(find_dataset("imagenet"))]
            write_text(file, "".join(f"{text}\n" for text in [*texts, *UNGROUNDED]))
        return file

    def config(self, seed: int, run: Path) -> attar.DistillVlConfig:
        """The run of a seed."""
        return attar.DistillVlConfig.build(
            {
                "teacher": str(self.teacher),
                "student": self.args.student,
                "images": [str(self.out / "data/images.parquet"), str(self.data / "imagenet_1000")],
                "sentences": str(self.sentences()),
                "features": str(self.out / "features"),
                "out": str(run),
                "img_size": IMG_SIZE,
                "batch_size": BATCH_SIZE,
                "max_steps": self.args.steps,
                "seed": seed,
                "device": "cpu",
                "views": VIEWS,
                "optim": {"lr": self.args.lr},
                "dime_fm": {"scale": read_json(self.teacher / "fit.json")["scale"]},  # as it was learned
            }
        )

    def collect(self) -> dict[str, Any]:
        """All figures with what a reader needs to repeat them."""
        rows = []
        for seed in self.args.seeds:
            for result in read_results(self.out / "judged" / str(seed) / "results"):
                task = result.task.partition(":")[0]
                figures = {"value": result.value, "ci95": result.ci95, "n": result.n, "protocol": result.protocol}
                rows.append({"task": task, "role": result.role, "seed": seed} | figures)
        return {
            "benchmark": "dime_real",
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/dime_real.py --data DATA --out OUT {given(self.args)}",
            "machine": machine("timm", "open_clip_torch"),
            "settings": self.settings(),
            "teacher": read_json(self.teacher / "fit.json"),
            "results": rows,
        }


def fit(head: torch.nn.Module, text: attar.TextTower, features: Tensor, labels: Tensor, names: list[str]) -> float:
    """Train projection and text tower in place, and say what was learned to multiply cosines by."""
    learner = torch.nn.ModuleList([head, text]).train()
    log_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    optimizer = torch.optim.AdamW([*embeddings_spared(learner, 0.05), {"params": [log_scale], "weight_decay": 0.0}])
    for step in range(TEACHER_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, total=TEACHER_STEPS, warmup=50, base=TEACHER_LR, warmup_lr=0.0, floor=0.0)
        rng = numpy_generator(0, "fit", step)
        rows = torch.from_numpy(rng.integers(len(labels), size=256))
        told = [
            TEMPLATES[k].format(name)
            for k, name in zip(rng.integers(len(TEMPLATES), size=len(names)), names, strict=True)
        ]
        scores = log_scale.exp().clamp(max=100.0) * cosines(head(features[rows]), text(text.tokenise(told)))
        loss = F.cross_entropy(scores, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 250 == 249:
            print(f"  step {step + 1}  loss {loss:.3f}  scale {log_scale.exp():.1f}", flush=True)
    learner.eval()
    return float(log_scale.detach().exp().clamp(max=100.0))


def table(results: dict[str, Any]) -> str:
    """Markdown: zero-shot and linear probe on CIFAR-10 test in per cent, means over seeds with standard deviation."""
    lines = ["| model | zero-shot | 95 % | logistic regression |", "|---|---|---|---|"]
    for role, name in ROLES.items():
        found = {
            task: [row for row in results["results"] if (row["task"], row["role"]) == (task, role)]
            for task in ("zero_shot", "logistic")
        }
        if found["zero_shot"]:
            low, high = (100 * statistics.mean(row["ci95"][side] for row in found["zero_shot"]) for side in (0, 1))
            shares = [percent([row["value"] for row in found[task]]) for task in ("zero_shot", "logistic")]
            lines.append(f"| {name} | {shares[0]} | {low:.1f} to {high:.1f} | {shares[1]} |")
    return "\n".join(lines)


def percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 and len(set(values)) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the data sets and teachers")
    parser.add_argument("--out", type=Path, default=Path("runs/dime_real"))
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--table", action="store_true", help="print the table of a result file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=4e-3)
    args = parser.parse_args()
    if not args.table:
        if args.data is None:
            parser.error("--data is needed")
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        Study(args).run()
    print(table(read_json(args.results or args.out / "results.json")))


if __name__ == "__main__":
    main()
