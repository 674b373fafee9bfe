"""Features against logits on real images: Proteus, its ablations and the baselines, one small student for all.

    python benchmarks/proteus_small.py --data DATA --out runs/proteus_small --results results.json
    python benchmarks/proteus_small.py --results results.json --table

DATA holds cifar10/{train,test}.parquet, caltech_51/CLASS/FILE, camvid/{images,annotations}/{train,val,test} and
teachers/resnet10t_64, a timm directory with its linear classifier beside it.

Every row trains the same student on the same views of CIFAR-10 train and of the Caltech images the teacher was
trained on; then frozen features are judged on images that neither saw, on 25 classes that neither saw, and on road
scenes. All rows share learning rate, schedule and views; nothing is tuned for one row. A finished training and a
finished measurement is a file in `--out`, so a second start does what is missing. Seed 0 of all rows comes first.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import attar
from attar.data.labelled import Labelled
from attar.data.sources import open_source
from attar.evaluation import (
    METRICS,
    choose_logistic,
    embed_labelled,
    knn_accuracy,
    wilson_interval,
)
from attar.evaluation.dense import SegmentationProbe
from attar.evaluation.dense.task import DenseTask
from attar.models import load_classifier
from attar.utils.io import read_json, read_lines, write_json
from attar.utils.seeding import numpy_generator
from machine import machine

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=128&depth=4&num_heads=4&init_values=1.0"
IMG_SIZE, BATCH_SIZE, STEPS = 64, 128, 784  # 100,352 views
LR = 1e-3
VIEWS = {"crop_scale": [0.4, 1.0], "randaugment": False, "erase": 0.0, "repeats": 1}
OPTIM = {"lr": LR, "ema_decay": 0.0, "clip_norm": 1.0}
PROBE_SEED, CIFAR_TRAIN, NEIGHBOURS, CAMVID = 0, 10_000, 5, "segmentation:camvid"
CURVE_POINTS = 40

TOKEN = {"method": "proteus", "proteus": {"feature_weight": 0.0, "patch_weight": 0.0}}
ROWS: dict[str, dict[str, Any] | None] = {
    "random": None,
    "labels": {"method": "labels"},
    "logits": {"method": "logits", "teacher_classifier": "fitted"},
    "soft_logits": {"method": "soft_logits", "teacher_classifier": "fitted"},
    "hint": {"method": "hint"},
    "token": TOKEN,
    "token_feature": {"method": "proteus", "proteus": {"patch_weight": 0.0}},
    "all_terms": {"method": "proteus"},
    "logits_shipped": {"method": "logits", "teacher_classifier": "shipped"},
    "soft_logits_shipped": {"method": "soft_logits", "teacher_classifier": "shipped"},
}
EXTRA = ("logits_shipped", "soft_logits_shipped")
"""Only on demand. The teacher's own classifier was trained on the two data sets apart: it is right among the classes of
one of them, but gives a CIFAR image half of its weight on Caltech classes. The logit rows get one fitted for all 36."""

TEACHERS = {"teacher": "?output_stride=8", "teacher_stride_32": ""}
"""The teacher of all rows, with its last map at stride 8 (8 x 8 tokens), and as it was trained (2 x 2)."""

NAMES = {
    "random": "random student",
    "labels": "labels only",
    "logits": "logits + labels",
    "soft_logits": "soft logits",
    "hint": "hint (CLS)",
    "token": "Proteus, token",
    "token_feature": "Proteus, token + feature",
    "all_terms": "Proteus, all three terms",
    "logits_shipped": "logits + labels, shipped classifier",
    "soft_logits_shipped": "soft logits, shipped classifier",
    "teacher": "teacher, 8 x 8 tokens",
    "teacher_stride_32": "teacher, 2 x 2 tokens",
}
PAPER = {
    "logits": ("78.7", ""),
    "soft_logits": ("80.5", ""),
    "hint": ("85.3", ""),
    "token": ("85.3", "44.0"),
    "token_feature": ("86.1", "47.4"),
    "all_terms": ("85.8", "50.0"),
}
"""Mean of 12 fine-grained sets and ADE20K mIoU, S/14 from DINOv2-B/14; second-hand, from reviews of the paper."""

COLUMNS = {  # heading -> (column, figure)
    "CIFAR-10 linear": ("cifar10", "linear_top1"),
    "k-NN": ("cifar10", "knn_top1"),
    "26 classes linear": ("caltech_seen", "linear_top1"),
    "k-NN ": ("caltech_seen", "knn_top1"),
    "25 unseen classes linear": ("caltech_unseen", "linear_top1"),
    "k-NN  ": ("caltech_unseen", "knn_top1"),
    "CamVid mIoU": ("camvid", "miou"),
}


class Study:
    """The data, the models and the folder of finished cells."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.data, self.out, self.workers = Path(args.data), Path(args.out), args.workers
        self.steps, self.limit, self.precision, self.device = args.steps, args.limit, args.precision, args.device
        self.teacher = self.data / "teachers" / "resnet10t_64"
        self.shipped_classifier = next(self.teacher.glob("classifier_*.safetensors"))
        self.columns: dict[str, Callable[[attar.Backbone], dict[str, Any]]] = {
            "cifar10": lambda backbone: self.classify(backbone, *self.cifar10()),
            "caltech_seen": lambda backbone: self.classify(backbone, *self.caltech(seen=True)),
            "caltech_unseen": lambda backbone: self.classify(backbone, *self.caltech(seen=False)),
            "camvid": self.segment,
        }
        self.check_settings()

    def settings(self) -> dict[str, Any]:
        """All that shapes a figure."""
        return describe_settings(self.steps, self.limit, self.precision)

    def check_settings(self) -> None:
        """Cells of other settings cannot be mixed."""
        settings, file = self.settings(), self.out / "settings.json"
        if file.exists() and read_json(file) != settings:
            raise SystemExit(f"{self.out} holds a study with other settings. Take another --out.")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)

    def run(self, rows: list[str], seeds: list[int], write: Callable[[], None]) -> None:
        """Every cell that is missing; `write` is called after each."""
        self.cell("check-labels", self.check_labels, write)
        for seed in seeds:
            for row in rows:
                if ROWS[row] is None:
                    self.judge(row, seed, lambda s=seed: self.load(STUDENT, weights="random", seed=s), write)
                    continue
                self.cell(f"training-{row}-{seed}", lambda r=row, s=seed: self.train(r, s), write)
                student = self.out / "runs" / f"{row}-{seed}" / "student"
                self.judge(row, seed, lambda s=student: self.load(str(s)), write)
        for row, arguments in TEACHERS.items():
            self.judge(row, 0, lambda a=arguments: self.load(f"{self.teacher}{a}"), write)

    def judge(self, row: str, seed: int, load: Callable[[], attar.Backbone], write: Callable[[], None]) -> None:
        """All columns of one backbone."""
        backbone = cache(load)
        for column, measure in self.columns.items():
            self.cell(
                f"{column}-{row}-{seed}", lambda m=measure: m(backbone()), write, row=row, seed=seed, column=column
            )

    def cell(self, name: str, measure: Callable[[], dict[str, Any]], write: Callable[[], None], **about: Any) -> None:
        """Do one piece of work unless its file is there."""
        file = self.out / "cells" / f"{name}.json"
        if file.exists():
            return
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", flush=True)
        started = time.perf_counter()
        found = measure()
        write_json(file, {**about, **found, "seconds": round(time.perf_counter() - started, 1)})
        write()

    def load(self, reference: str, *, weights: str = "pretrained", seed: int = 0) -> attar.Backbone:
        return attar.load_backbone(reference, weights=weights, img_size=IMG_SIZE, seed=seed).to(self.device)

    def training_data(self) -> tuple[str, str]:
        """CIFAR-10 train, and a folder of links to the Caltech images the teacher was trained on."""
        folder = self.out / "caltech_26"
        for name in self.caltech_classes()[:26]:
            (folder / name).mkdir(parents=True, exist_ok=True)
            for image in sorted((self.data / "caltech_51" / name).iterdir()):
                link = folder / name / image.name
                if not is_held_back(f"{name}/{image.name}") and not link.is_symlink():
                    link.symlink_to(image.resolve())
        return str(self.data / "cifar10" / "train.parquet"), str(folder)

    def caltech_classes(self) -> list[str]:
        return sorted(folder.name for folder in (self.data / "caltech_51").iterdir())

    def train(self, row: str, seed: int) -> dict[str, Any]:
        """One distillation; an interrupted one goes on."""
        method = dict(ROWS[row] or {})
        classifiers = {"fitted": self.out / "classifier_36.safetensors", "shipped": self.shipped_classifier}
        if "teacher_classifier" in method:
            method["teacher_classifier"] = str(classifiers[method["teacher_classifier"]])
        return self.distil(row, seed, {"data": self.training_data(), **method})

    def distil(self, row: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        """The run all rows share, with what makes this one."""
        config = attar.DistillConfig.build(
            {
                "teacher": f"{self.teacher}?output_stride=8",
                "student": STUDENT,
                "out": str(self.out / "runs" / f"{row}-{seed}"),
                "img_size": IMG_SIZE,
                "batch_size": BATCH_SIZE,
                "max_steps": self.steps,
                "seed": seed,
                "precision": self.precision,
                "device": self.device,
                "views": VIEWS,
                "optim": OPTIM,
                "log_every": 2,
                "workers": self.workers,
                **changes,
            }
        )
        report = attar.distill(config)
        lines = [line for line in read_lines(report.run / "metrics.jsonl") if "loss" in line]
        return {"row": row, "seed": seed, "views": self.steps * BATCH_SIZE, **describe_losses(lines)}

    def check_labels(self) -> dict[str, Any]:
        """The teacher's classifier must know the training labels: else its rows and the data's classes differ.

        `of 36` is its accuracy among all classes, `in group` among the classes of the image's data set, which is what
        it was trained for. Fits a classifier for all 36 classes and the 8 x 8 teacher, which the logit rows use.
        """
        parts = self.labelled_36()
        found = {}
        for teacher, arguments in TEACHERS.items():
            backbone = self.load(f"{self.teacher}{arguments}")
            features = {
                name: embed_labelled(backbone, part, workers=self.workers, name=name) for name, part in parts.items()
            }
            head = choose_logistic(
                *(
                    torch.cat(pair)
                    for pair in zip(features["cifar10_train"], features["caltech_26_train"], strict=True)
                ),
                seed=PROBE_SEED,
            )
            if teacher == "teacher":
                save_file({"fc.weight": head.weight, "fc.bias": head.bias}, self.out / "classifier_36.safetensors")
            shipped = load_classifier(self.shipped_classifier, backbone)
            for part, (x, y) in features.items():
                found[f"{teacher}, shipped classifier, {part}"] = accuracies(shipped(x), y)
                found[f"{teacher}, fitted classifier, {part}"] = accuracies(head.logits(x), y)
        known = [figures["in group"] for key, figures in found.items() if key.startswith("teacher_stride_32, shipped")]
        assert min(known) > 0.65, f"the classifier's rows are no classes of the data: {found}"
        return {"classifiers": found}

    def labelled_36(self) -> dict[str, Labelled]:
        """Training and held-back images of the 36 classes the teacher was trained on, labelled as in training."""
        source = open_source(self.training_data())
        labels, names = source.labels()
        assert names == [str(number) for number in range(10)] + self.caltech_classes()[:26], names
        everything = Labelled(source, np.arange(len(source)), labels, tuple(names))
        count = CIFAR_TRAIN if self.limit is None else CIFAR_TRAIN // 10  # all classes, also when limited
        chosen = numpy_generator(0, "cifar10").permutation(np.flatnonzero(labels < 10))[:count]
        held_back = self.caltech(seen=True)[1]
        return {
            "cifar10_train": everything.take(np.sort(chosen)),
            "caltech_26_train": everything.take(np.flatnonzero(labels >= 10)),
            "cifar10_test": self.cifar10()[1],
            "caltech_26_held_back": Labelled(held_back.source, held_back.rows, held_back.labels + 10, tuple(names)),
        }

    @cache  # noqa: B019  one study a process
    def cifar10(self) -> tuple[Labelled, Labelled]:
        train, test = (everything_in(self.data / "cifar10" / f"{part}.parquet") for part in ("train", "test"))
        chosen = np.sort(numpy_generator(0, "cifar10").permutation(len(train))[:CIFAR_TRAIN])
        return self.some(train.take(chosen)), self.some(test)

    @cache  # noqa: B019
    def caltech(self, *, seen: bool) -> tuple[Labelled, Labelled]:
        """(70 %, 30 %) of the 26 classes the teacher was trained on, or of the 25 others."""
        images, names = everything_in(self.data / "caltech_51"), self.caltech_classes()
        assert list(images.class_names) == names
        wanted = (images.labels < 26) == seen
        images = Labelled(images.source, images.rows, images.labels - (0 if seen else 26), tuple(names))
        held_back = np.array([is_held_back(images.source.name(row)) for row in range(len(images))])
        return tuple(self.some(images.take(np.flatnonzero(wanted & part))) for part in (~held_back, held_back))

    def some(self, images: Labelled) -> Labelled:
        """At most `--limit` images."""
        order = numpy_generator(0, "limit").permutation(len(images))[: self.limit]
        return images.take(np.sort(order))

    def classify(self, backbone: attar.Backbone, train: Labelled, test: Labelled) -> dict[str, Any]:
        """Linear probe and k-NN on class-token features; of the teacher its own classifier too, where it applies."""
        bank = embed_labelled(backbone, train, workers=self.workers, name="training images")
        features, labels = embed_labelled(backbone, test, workers=self.workers, name="test images")
        head = choose_logistic(*bank, seed=PROBE_SEED)
        predicted = head.predict(features)
        found = {
            "linear_top1": top1(predicted, labels),
            "knn_top1": knn_accuracy(bank, (features, labels), k=NEIGHBOURS),
        }
        return {
            **found,
            **{f"{name}_ci95": wilson_interval(value, len(labels)) for name, value in found.items()},
            "linear_mean_per_class": METRICS["mean_per_class"](head.logits(features), labels),
            "linear_C": head.C,
            "train_images": len(bank[1]),
            "test_images": len(labels),
        }

    def segment(self, backbone: attar.Backbone) -> dict[str, Any]:
        """Linear segmentation of road scenes: the task `segmentation:camvid` of `attar evaluate` in honest mode."""
        config = attar.EvaluateConfig(
            model="as given", tasks=CAMVID, out="none", data_root=str(self.data), seed=PROBE_SEED
        )
        probe = SegmentationProbe(config)
        splits = DenseTask(config, probe).open("camvid").splits
        parts = {part: getattr(splits, part)[: self.limit] for part in ("train", "val", "test")}
        score = probe.judge(backbone, replace(splits, **parts), device=self.device)
        return {
            "miou": score.value,
            "miou_ci95": score.ci95,
            "linear_C": score.protocol["C"],
            "train_images": len(parts["train"]),
            "test_images": score.n,
        }


def is_held_back(name: str) -> bool:
    """Whether CLASS/FILE is a test image; the teacher was trained by the same rule."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % 10 < 3


def everything_in(path: Path) -> Labelled:
    source = open_source(str(path))
    labels, names = source.labels()
    return Labelled(source, np.arange(len(source)), labels, tuple(names))


def accuracies(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    group = slice(0, 10) if labels.max() < 10 else slice(10, 36)
    return {
        "of 36": round(top1(logits.argmax(1), labels), 4),
        "in group": round(top1(logits[:, group].argmax(1) + group.start, labels), 4),
    }


def top1(predicted: torch.Tensor, labels: torch.Tensor) -> float:
    return (predicted == labels).double().mean().item()


def describe_losses(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss curve in about 40 means, and how flat its end is."""
    losses = np.array([line["loss"] for line in lines])
    tenth = max(1, len(losses) // 10)
    last, before = losses[-tenth:].mean(), losses[-2 * tenth : -tenth].mean() if len(losses) > tenth else losses[0]
    curve = [
        {"step": lines[int(part[-1])]["step"], "loss": float(f"{losses[part].mean():.5g}")}
        for part in np.array_split(np.arange(len(losses)), min(CURVE_POINTS, len(losses)))
    ]
    return {
        "loss_curve": curve,
        "flatness": float(f"{(last - before) / before:.4g}"),
        "images_per_second": round(statistics.median(line["images_per_second"] for line in lines)),
    }


def describe_settings(steps: int, limit: int | None, precision: str) -> dict[str, Any]:
    return {
        "student": STUDENT,
        "teacher": "resnet10t_64?output_stride=8",
        "img_size": IMG_SIZE,
        "batch_size": BATCH_SIZE,
        "steps": steps,
        "views": VIEWS,
        "optim": OPTIM,
        "precision": precision,
        "rows": ROWS,
        "probe": {"seed": PROBE_SEED, "k": NEIGHBOURS, "cifar10_train_images": CIFAR_TRAIN, "limit": limit}
        | {"held_out": "a fifth of each class", "camvid": CAMVID},
    }


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """All finished cells with what a reader needs to repeat them."""
    cells = [read_json(path) for path in sorted((Path(args.out) / "cells").glob("*.json"))]
    return {
        "benchmark": "proteus_small",
        "date": datetime.date.today().isoformat(),
        "command": command("proteus_small", args),
        "machine": machine(),
        "settings": describe_settings(args.steps, args.limit, args.precision),
        "paper": {row: {"fine_grained": a, "ade20k_miou": b, "tag": "second-hand"} for row, (a, b) in PAPER.items()},
        "flatness": "relative change of the mean loss of the last tenth of the steps against the tenth before",
        "teacher_classifiers": next((c["classifiers"] for c in cells if "classifiers" in c), None),
        "trainings": [c for c in cells if "loss_curve" in c],
        "results": [c for c in cells if "column" in c],
    }


def command(script: str, args: argparse.Namespace) -> str:
    """As it was given, with names for this machine's places."""
    rows = f" --rows {' '.join(args.rows)}" if "rows" in args else ""
    return (
        f"python benchmarks/{script}.py --data DATA --out OUT{rows} --seeds {' '.join(map(str, args.seeds))}"
        f" --workers {args.workers} --threads {torch.get_num_threads()} --precision {args.precision}"
        f" --device {args.device}"
    )


def table(results: dict[str, Any]) -> str:
    """Markdown: mean over seeds in per cent, with half the range over seeds; the paper's figures beside."""
    heading = [
        "row",
        *(name.strip() for name in COLUMNS),
        "loss change",
        "paper's fine-grained mean, second-hand",
        "its ADE20K",
    ]
    lines = [f"| {' | '.join(heading)} |", "|" + "---|" * len(heading)]
    for row in [*TEACHERS, *ROWS]:
        figures = [
            share([c[key] for c in results["results"] if (c["row"], c["column"]) == (row, column)])
            for column, key in COLUMNS.values()
        ]
        if not any(figures):
            continue
        flatness = [100 * c["flatness"] for c in results["trainings"] if c["row"] == row]
        ended = f"{statistics.mean(flatness):+.1f} %" if flatness else ""
        lines.append(f"| {' | '.join([NAMES[row], *figures, ended, *PAPER.get(row, ('', ''))])} |")
    return "\n".join(lines)


def share(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def add_options(parser: argparse.ArgumentParser, *, out: str, steps: int) -> None:
    """What the studies have in common."""
    parser.add_argument("--data", help="folder with the data sets and teachers")
    parser.add_argument("--out", default=out, help="where runs and finished cells lie")
    parser.add_argument("--results", type=Path, help="result file; by default results.json in --out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--workers", type=int, default=1, help="loader processes")
    parser.add_argument("--threads", type=int, help="threads of torch; by default one for each core")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all trainings")
    parser.add_argument("--device", default="cpu", help="where models run; the linear probes stay on the CPU")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--limit", type=int, help="images of each part of an evaluation, to try the script")
    parser.add_argument("--table", action="store_true", help="print the table of the result file and end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, out="runs/proteus_small", steps=STEPS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=[row for row in ROWS if row not in EXTRA])
    args = parser.parse_args()
    file = args.results or Path(args.out) / "results.json"
    if args.table:
        print(table(json.loads(file.read_text())))
        return
    if args.data is None:
        parser.error("--data is needed")
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    study = Study(args)

    def write() -> None:
        write_json(file, collect(args))

    study.run(args.rows, args.seeds, write)
    write()
    print(table(read_json(file)))


if __name__ == "__main__":
    main()
