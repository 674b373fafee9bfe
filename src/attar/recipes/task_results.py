"""What came of a transfer: figures of teacher and student after each stage, what each stage cost, whether it helped."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from attar.config import TransferConfig
from attar.data.sources import Source
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.metrics import METRICS
from attar.export import card_end, write_task_model
from attar.models import Backbone, TaskModel
from attar.models.compute import forward_macs
from attar.recipes.describe import licence_noted, limits, short
from attar.recipes.stages import Outcome
from attar.recipes.tasks import OpenedTask, Rows
from attar.reports import Result, Role, caution, read_results, write_result
from attar.reports.transfer import STAGES, transfer_rows
from attar.utils.io import read_json
from attar.utils.plain import in_cell
from attar.utils.progress import Log

_FEWEST = 10  # images that a bootstrap interval says something of
_BACKWARD = 2  # forward passes that a backward pass costs


class Judge:
    """Judges task models on the labelled images that none of them learned from, and writes what it finds.

    Attributes:
        rows: What the task's metrics took, by stage and part.
    """

    def __init__(self, task: OpenedTask, pool: Source | None, config: TransferConfig, folder: Path) -> None:
        self.task, self.pool, self.config, self.folder = task, pool, config, folder
        self.rows: dict[tuple[str, str], Rows] = {}

    def score(self, model: TaskModel) -> float:
        """The task's first metric on the images to choose by."""
        return self.task.value(self.task.predict(model, "val"))

    def __call__(
        self,
        model: TaskModel,
        stage: str,
        role: Role,
        reference: str,
        *,
        fixed: Mapping[str, Rows] | None = None,
    ) -> list[Result]:
        """Judge a model after a stage on every part; on the main rank.

        Args:
            model: Whom.
            stage: After which.
            role: What it is.
            reference: What results call it.
            fixed: What parts gave where the model's own would be of images that it learned from.
        """
        found = []
        for part in self.task.judged_parts:
            started = time.perf_counter()
            rows = (fixed or {}).get(part) or self.task.predict(model, part)
            self.rows[stage, part] = rows
            for name in self.task.metrics:
                result = self._result(rows, name, stage, part)
                result = replace(
                    result,
                    role=role,
                    model=short(reference),
                    seconds=round(time.perf_counter() - started, 1),
                    source=asdict(model.backbone.source),
                )
                write_result(self.folder, f"{stage}-{part}-{name}", result)
                found.append(result)
        return found

    def _result(self, rows: Rows, name: str, stage: str, part: str) -> Result:
        task, config, metric = self.task, self.config, METRICS[name]
        protocol = {
            "stage": stage,
            "part": part,
            "task": config.task,
            "pretrain": config.pretrain,
            "labels": task.num_labels,
            "chosen_on": "val",
        }
        return Result(
            task=f"transfer:{part}",
            role="model",
            model="",
            metric=name,
            value=metric(*rows),
            ci95=bootstrap_interval(metric, *rows, seed=config.seed),
            n=len(rows[0]),
            protocol=protocol | task.protocol(),
            seed=config.seed,
            details=task.details(rows) if name == task.metrics[0] else {},
            held_out=not (self.pool is not None and task.shares_a_place(self.pool, part)),
        )

    def results(self) -> list[Result]:
        """All that was written, stage by stage."""
        order = list(STAGES)
        return sorted(read_results(self.folder), key=lambda r: (order.index(r.protocol["stage"]), r.task, r.metric))


def task_verdict(judge: Judge, config: TransferConfig) -> str:
    """Whether what came before finetuning helped: one sentence, from images that both students were judged on."""
    task = judge.task
    part = task.reported_on
    caveat = " They also chose the step: give others to report on." if part == "val" else ""
    student = judge.rows["finetune", part]
    images = f"{len(student[0]):,} {part} images"
    reaches = f"the student reaches {task.figure}{_percent(task.value(student))}"
    if ("scratch", part) not in judge.rows:
        return (
            f"T{reaches[1:]} on {images}. Nothing was measured beside it in this run: whether anything but the labels"
            f" helped, other rows of a study tell, or a run with --scratch.{caveat}"
        )
    scratch = judge.rows["scratch", part]
    if len(student[0]) != len(scratch[0]):
        return "Not known: other images could be read for one student than for the other."
    gain, (low, high) = task.gain(student, scratch, seed=config.seed)
    rest = (
        f"{reaches}, the same one without the transfer stage {_percent(task.value(scratch))}: {100 * gain:+.1f} points"
    )
    if len(student[0]) < _FEWEST:
        return f"Not proven: {rest} ({images}, too few for an interval).{caveat}"
    rest += f" ({100 * low:+.1f} to {100 * high:+.1f}, {images}).{caveat}"
    if warning := caution([result for result in judge.results() if result.protocol["part"] == part]):
        return f"Not proven: {rest} {warning} Give others to report on."
    if low > 0:
        return f"It helped: {rest}"
    return f"It harmed: {rest}" if high < 0 else f"Not proven: {rest}"


@dataclass
class Compute:
    """Multiply-adds of a forward pass, and from them those of each stage (spec task_transfer §3.4, DESIGN)."""

    teacher: int | None = None
    student: int = 0

    def measure(self, teacher: Backbone | TaskModel | None, student: TaskModel) -> None:
        """Count those of both models, the teacher's with its head where that is asked."""
        self.teacher = None if teacher is None else forward_macs(teacher)
        self.student = forward_macs(student)

    def table(self, outcomes: Mapping[str, Outcome], config: TransferConfig, *, pool: int) -> dict[str, Any]:
        """Images, multiply-adds and seconds of each stage; validation is in none, nor is what chose the pool's images.

        Args:
            outcomes: Of the stages.
            config: Of the run.
            pool: Images to transfer on, of which a cached view is asked for once.
        """
        stages = {
            name: {
                "images": outcome.images + outcome.looks,
                "macs": self._macs(name, outcome, config, pool),
                "seconds": round(outcome.seconds, 1),
                "steps": outcome.steps,
            }
            for name, outcome in outcomes.items()
        }
        return {"teacher_macs": self.teacher, "student_macs": self.student, "stages": stages}

    def _macs(self, stage: str, outcome: Outcome, config: TransferConfig, pool: int) -> int:
        """Low-rank additions need no gradients of the weights they are added to; a head's features take one pass."""
        teacher, steps = self.teacher or 0, (1 + _BACKWARD) * outcome.images
        if stage == "adapt":
            learning = _BACKWARD * outcome.images if config.adapt.mode == "lora" else steps
            return (outcome.looks + learning) * teacher
        asked = 0
        if stage == "transfer":
            views = config.transfer.cached_views
            asked = outcome.images if views is None else min(outcome.images, pool * views)
        return asked * teacher + steps * self.student


def say_task_results(log: Log, results: Sequence[Result], compute: Mapping[str, Any]) -> None:
    """The table at the end of a run."""
    log.say("")
    for line in transfer_rows(results, compute):
        log.say(
            f"  {line[0]:26}{line[1]:6}{line[2]:>8}  {line[3]:14}{line[4]:>11}{line[5]:>10}{line[6]:>10}{line[7]:>9}"
        )


def task_card(
    task: OpenedTask,
    config: TransferConfig,
    results: Sequence[Result],
    compute: Mapping[str, Any] | None,
    sentence: str,
) -> str:
    """Model card of a task model; where it comes from is what the run wrote down when it began."""
    table = "Nothing."
    if results:
        heading, *rows = transfer_rows(results, compute)
        table = "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows))
    facts = task_facts(config)
    rows_of_facts = "".join(f"| {in_cell(name)} | {in_cell(str(value))} |\n" for name, value in facts.items())
    rows_of_facts = f"| | |\n|---|---|\n{rows_of_facts}\n" if facts else ""
    bounds = limits(config.img_size, [], learned_from="the labels and images above", has_teacher="teacher" in facts)
    return (
        f"# {Path(config.out).name}: {short(config.student)}\n\n{sentence}\n\n{task.usage}\n\n"
        f"Task {config.task}, {len(task.class_names)} classes. Teacher {config.teacher or 'none'}, pretrain"
        f" {config.pretrain}, seed {config.seed}.\n\n"
        f"{rows_of_facts}## Measured\n\n{table}\n\n{card_end(licence_noted(facts), bounds[:2], of='the images used')}"
    )


def write_card_and_model(
    folder: Path,
    model: TaskModel,
    task: OpenedTask,
    config: TransferConfig,
    results: Sequence[Result],
    compute: Mapping[str, Any] | None,
    sentence: str,
) -> None:
    """Write a task model of a run with its card, and what its backbone's own description says of it."""
    card = task_card(task, config, results, compute, sentence)
    licence = licence_noted(task_facts(config))
    write_task_model(folder, model, card=card, licence=licence, crop_pct=config.crop_pct)


def task_facts(config: TransferConfig) -> dict[str, str]:
    """Where the models of a run come from, as it wrote it down when it began."""
    about = Path(config.out) / "about.json"
    facts: dict[str, str] = read_json(about) if about.is_file() else {}
    return facts


def _percent(value: float) -> str:
    """In per cent; below one per cent with a digit more, or few and nothing would look alike."""
    return f"{100 * value:.{2 if 0 < value < 0.01 else 1}f}"
