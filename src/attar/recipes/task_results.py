"""What came of a transfer: figures of teacher and student after each stage, what each stage cost, whether it helped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attar.config import TransferConfig
from attar.data.sources import Source, share_a_place
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.metrics import METRICS
from attar.evaluation.predictions import predict_labelled
from attar.models import Backbone, TaskModel
from attar.models.compute import forward_macs
from attar.recipes.task_images import TaskImages
from attar.reports import Result, Role, read_results, write_result
from attar.utils.progress import Log

STAGES = {
    "adapt": "teacher, adapted",
    "transfer": "student after transfer",
    "finetune": "student after finetuning",
    "scratch": "student from labels alone",
}
_METRICS = ("top1", "mean_per_class")
_BACKWARD = 2  # forward passes that a backward pass costs


class Judge:
    """Judges task models on the labelled images that none of them learned from, and writes what it finds."""

    def __init__(
        self, images: TaskImages, pool: Source | None, config: TransferConfig, folder: Path, workers: int
    ) -> None:
        self.images, self.pool, self.config, self.folder, self.workers = images, pool, config, folder, workers
        self.hits: dict[tuple[str, str], Tensor] = {}

    def predict(self, model: TaskModel, part: str) -> tuple[Tensor, Tensor]:
        """Logits and classes of a part's readable images."""
        labelled = self.images.parts[part]
        return predict_labelled(
            model, labelled, crop_pct=self.config.crop_pct, workers=self.workers, name=f"{part} images"
        )

    def score(self, model: TaskModel) -> float:
        """Top-1 on the images to choose by."""
        return METRICS["top1"](*self.predict(model, "val"))

    def __call__(
        self,
        model: TaskModel,
        stage: str,
        role: Role,
        reference: str,
        *,
        fixed: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> list[Result]:
        """Judge a model after a stage on every part; on the main rank.

        Args:
            model: Whom.
            stage: After which.
            role: What it is.
            reference: What results call it.
            fixed: Scores and classes of parts where the model's own would be of images that it learned from.
        """
        found = []
        for part in self.images.parts:
            started = time.perf_counter()
            scores, targets = (fixed or {}).get(part) or self.predict(model, part)
            self.hits[stage, part] = (scores.argmax(1) == targets).double()
            for name in _METRICS:
                metric = METRICS[name]
                result = Result(
                    task=f"transfer:{part}",
                    role=role,
                    model=reference,
                    metric=name,
                    value=metric(scores, targets),
                    ci95=bootstrap_interval(metric, scores, targets, seed=self.config.seed),
                    n=len(targets),
                    protocol={
                        "stage": stage,
                        "part": part,
                        "pretrain": self.config.pretrain,
                        "labels": len(self.images.train) + len(self.images.val),
                        "crop_pct": self.config.crop_pct,
                        "chosen_on": "val",
                    },
                    seed=self.config.seed,
                    seconds=round(time.perf_counter() - started, 1),
                    source=asdict(model.backbone.source),
                    held_out=not (self.pool is not None and share_a_place(self.pool, self.images.parts[part].source)),
                )
                write_result(self.folder, f"{stage}-{part}-{name}", result)
                found.append(result)
        return found

    def results(self) -> list[Result]:
        """All that was written, stage by stage."""
        order = list(STAGES)
        return sorted(read_results(self.folder), key=lambda r: (order.index(r.protocol["stage"]), r.task, r.metric))

    @property
    def reported_on(self) -> str:
        """The part whose figures count: the test images, where there are some."""
        return "val" if self.images.test is None else "test"


def task_verdict(judge: Judge, config: TransferConfig) -> str:
    """Whether what came before finetuning helped: one sentence, from images that both students were judged on."""
    part = judge.reported_on
    caveat = " They also chose the step: give others with --test." if part == "val" else ""
    student = judge.hits["finetune", part]
    if ("scratch", part) not in judge.hits:
        return (
            f"The student reaches {_percent(student.mean())} on {len(student):,} {part} images. Nothing was measured"
            f" beside it: whether anything but the labels helped is not known.{caveat}"
        )
    scratch = judge.hits["scratch", part]
    if len(student) != len(scratch):
        return "Not known: other images could be read for one student than for the other."
    gain = (student - scratch).mean().item()
    low, high = bootstrap_interval(_mean, student - scratch, seed=config.seed)
    rest = (
        f"the student reaches {_percent(student.mean())}, the same one from labels alone {_percent(scratch.mean())}:"
        f" {100 * gain:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}, {len(student):,} {part} images,"
        f" pretrain {config.pretrain}).{caveat}"
    )
    if low > 0:
        return f"It helped: {rest}"
    return f"It harmed: {rest}" if high < 0 else f"Not proven: {rest}"


def _mean(rows: Tensor) -> float:
    return rows.mean().item()


@dataclass
class Compute:
    """Multiply-adds of a forward pass, and from them those of each stage (spec task_transfer §3.4, DESIGN)."""

    teacher: int | None = None
    student: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def measure(self, teacher: Backbone | None, student: Backbone) -> None:
        """Count those of both models."""
        self.teacher = None if teacher is None else forward_macs(teacher)
        self.student = forward_macs(student)

    def table(self, outcomes: Mapping[str, Any], config: TransferConfig) -> dict[str, Any]:
        """Images, multiply-adds and seconds of each stage; validation is in neither."""
        step_of_student = (1 + _BACKWARD) * self.student
        per_image = {
            "adapt": self._of_adapting(config),
            "transfer": (self.teacher or 0) + step_of_student,
            "finetune": step_of_student,
            "scratch": step_of_student,
        }
        stages = {
            name: {
                "images": outcome.images,
                "macs": outcome.images * per_image[name],
                "seconds": round(outcome.seconds, 1),
                "steps": outcome.steps,
            }
            for name, outcome in outcomes.items()
        }
        return {"teacher_macs": self.teacher, "student_macs": self.student, "stages": stages}

    def _of_adapting(self, config: TransferConfig) -> int:
        """A head's features take one pass; low-rank additions need no gradients of the weights they are added to."""
        passes = {"head": 1, "lora": _BACKWARD}.get(config.adapt.mode, 1 + _BACKWARD)
        return passes * (self.teacher or 0)


def say_task_results(log: Log, results: Sequence[Result], compute: Mapping[str, Any]) -> None:
    """The table at the end of a run."""
    log.say("")
    for line in _rows(results, compute):
        log.say(
            f"  {line[0]:26}{line[1]:6}{line[2]:>8}  {line[3]:14}{line[4]:>11}{line[5]:>10}{line[6]:>10}{line[7]:>9}"
        )


def _rows(results: Sequence[Result], compute: Mapping[str, Any] | None) -> list[list[str]]:
    rows = [["", "on", "top-1", "95 % interval", "mean/class", "images", "GMACs", "seconds"]]
    by_class = {(r.protocol["stage"], r.task): r.value for r in results if r.metric == "mean_per_class"}
    for r in results:
        if r.metric != "top1":
            continue
        stage = r.protocol["stage"]
        cost = (compute or {}).get("stages", {}).get(stage)
        rows.append(
            [
                STAGES[stage],
                r.protocol["part"],
                _percent(r.value),
                f"{_percent(r.ci95[0])} – {_percent(r.ci95[1])}",
                _percent(by_class[stage, r.task]),
                f"{cost['images']:,}" if cost else "",
                f"{cost['macs'] / 1e9:,.0f}" if cost else "",
                f"{cost['seconds']:,.0f}" if cost else "",
            ]
        )
    return rows


def task_card(
    config: TransferConfig, results: Sequence[Result], compute: Mapping[str, Any] | None, sentence: str
) -> str:
    """Model card of a task model."""
    rows = _rows(results, compute)
    table = "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))
    return (
        f"# {Path(config.out).name}: {config.student}\n\n{sentence}\n\n"
        "```python\nimport timm\n"
        'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()\n'
        "logits = model(images)  # images normalised with mean and std of config.json, classes in label_names\n```\n\n"
        f"Teacher {config.teacher or 'none'}, pretrain {config.pretrain}, seed {config.seed}."
        " `attar predict FOLDER --data DIR --out FILE.csv` uses it.\n\n"
        f"## Measured\n\n{table if results else 'Nothing.'}\n\n"
        "The licence of these weights is for their maker to choose, within the terms of the teacher's licence and the"
        " images used. attar claims no right in them.\n"
    )


def _percent(value: float | Tensor) -> str:
    return f"{100 * float(value):.1f}"
