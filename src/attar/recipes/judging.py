"""Did it help? Teacher, random student and student are measured alike, once for the same weights."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from attar.data.references import shown
from attar.data.sources import share_a_place
from attar.evaluation import wilson_interval
from attar.models import Backbone
from attar.recipes.assembly import Assembly, load_student
from attar.recipes.describe import short
from attar.reports import Result, Role, caution, read_results, write_result
from attar.train import TrainState, is_sharded
from attar.types import Evaluator
from attar.utils.distributed import from_main, is_main
from attar.utils.io import write_json
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory
from attar.utils.signals import signals_postponed


def judge_baselines(built: Assembly, run: RunDirectory, state: TrainState, log: Log) -> str:
    """k-NN of teacher and random student, measured once a run on the main rank; a line for the log."""
    if built.monitor is None:
        log.say("  monitor  none: without --monitor nobody will know whether it helped")
        return ""
    judge_teacher = partial(judge, built, run, "teacher", built.teacher)
    # a sharded one answers only when all ranks ask it
    teacher = judge_teacher() if is_sharded(built.teacher) else from_main(judge_teacher)
    return from_main(partial(_judge_random, built, run, state, log, teacher))


def _judge_random(built: Assembly, run: RunDirectory, state: TrainState, log: Log, teacher: Result) -> str:
    """The untrained student beside its teacher, and what the reader must know of both."""
    assert built.monitor is not None
    assert built.config.monitor is not None
    write_json(run.path / "monitor.json", built.monitor.describe())
    if state.notes.get("protocol") != built.monitor.protocol:  # other scores than these cannot be compared with
        state.notes.pop("best", None)
        state.notes["protocol"] = built.monitor.protocol
    untrained = load_student(built.config, "random", preprocess=built.student.preprocess)
    random = judge(built, run, "random", untrained.to(built.device))
    if (unreadable := len(built.monitor.report) - teacher.n) > 0:
        log.say(f"           {unreadable} of the {len(built.monitor.report)} images to report on cannot be read")
    line = f"teacher {100 * (teacher.selection or 0):.1f}  random {100 * (random.selection or 0):.1f}"
    log.say(f"  monitor  {shown(built.config.monitor)}  k-NN  {line}  (selection half)")
    if warning := caution([teacher]):
        log.say(f"           {warning}")
    return line


def judge(built: Assembly, run: RunDirectory, role: Role, backbone: Backbone) -> Result:
    """Measure a backbone by k-NN, unless it was measured before."""
    monitor, config = built.monitor, built.config
    assert monitor is not None
    assert config.monitor is not None
    question = Question(
        task=f"knn:{shown(config.monitor)}",
        protocol=monitor.protocol,
        held_out=not share_a_place(built.source, monitor.report.source),
        seed=config.seed,
    )
    name = short(config.teacher if role == "teacher" else config.student)
    return measured(question, monitor, run, role, backbone, name)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an evaluator asks of a backbone.

    Attributes:
        task: `KIND:PLACE`; the evaluator's scores are called `KIND_select`, `KIND_report` and `KIND_images`.
        protocol: Settings that shape the figures.
        held_out: Whether the images lie apart from those trained on.
        seed: Of the run.
    """

    task: str
    protocol: Mapping[str, Any]
    held_out: bool
    seed: int


def measured(
    question: Question, evaluator: Evaluator, run: RunDirectory, role: Role, backbone: Backbone, name: str
) -> Result:
    """Measure a backbone and write the result, unless the same weights were judged the same way before.

    On the main rank alone, or on all of them where the backbone is sharded.
    """
    kind, source = question.task.partition(":")[0], asdict(backbone.source)
    wanted = (role, question.task, question.protocol, question.held_out, source["sha256"])

    def known() -> Result | None:
        for r in read_results(run.results):
            if (r.role, r.task, r.protocol, r.held_out, r.source.get("sha256")) == wanted:
                return r
        return None

    before = from_main(known) if is_sharded(backbone) else known()
    if before is not None:
        return before
    started = time.perf_counter()
    with signals_postponed() if is_sharded(backbone) else nullcontext():  # ranks must not stop at different batches
        scores = dict(evaluator.run(backbone))
    value, images = scores[f"{kind}_report"], int(scores[f"{kind}_images"])
    result = Result(
        task=question.task,
        role=role,
        model=name,
        metric="top1",
        value=value,
        ci95=wilson_interval(value, images),
        n=images,
        protocol=dict(question.protocol),
        seed=question.seed,
        seconds=round(time.perf_counter() - started, 1),
        source=source,
        selection=scores[f"{kind}_select"],
        held_out=question.held_out,
    )
    if is_main():
        write_result(run.results, f"{kind}-{role}", result)
    return result
