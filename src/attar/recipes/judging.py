"""Did it help? Teacher, random student and student are measured alike, once for the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from attar.config import MonitorConfig, ZeroShotMonitorConfig
from attar.data.labelled import Labelled
from attar.data.references import shown
from attar.data.sources import Source, share_a_place
from attar.evaluation import wilson_interval
from attar.models import Backbone
from attar.recipes.describe import short
from attar.recipes.training import check_every
from attar.reports import PROTOCOLS, Result, Role, caution, read_results, write_result
from attar.train import Metrics, Monitor, TrainState, is_sharded
from attar.types import Evaluator
from attar.utils.distributed import from_main, is_main
from attar.utils.io import write_json
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory
from attar.utils.signals import signals_postponed


class MonitorSettings(Protocol):
    """What a verb's settings say of who is judged, and on what."""

    @property
    def teacher(self) -> str: ...
    @property
    def student(self) -> str: ...
    @property
    def monitor(self) -> str | None: ...
    @property
    def monitoring(self) -> MonitorConfig | ZeroShotMonitorConfig: ...
    @property
    def seed(self) -> int: ...


class MonitorImages(Protocol):
    """A monitor's images and how they judge; `kind` is a word of `PROTOCOLS`, which its scores' names begin with."""

    kind: str
    report: Labelled

    @property
    def protocol(self) -> dict[str, Any]: ...
    def describe(self) -> dict[str, Any]: ...


class Watched(Protocol):
    """The parts of a run that a monitor has to do with."""

    @property
    def config(self) -> MonitorSettings: ...
    @property
    def source(self) -> Source: ...
    @property
    def monitor(self) -> MonitorImages | None: ...
    @property
    def total_steps(self) -> int: ...


def judge_baselines(
    built: Watched,
    run: RunDirectory,
    state: TrainState,
    log: Log,
    *,
    evaluator: Evaluator | None,
    teacher: Backbone,
    untrained: Callable[[], Backbone],
) -> str:
    """Teacher and random student, measured once a run on the main rank; a line for the log.

    Args:
        built: The run's parts.
        run: Where results go.
        state: Whose notes forget a best that was chosen by another protocol.
        log: For people.
        evaluator: Judges both; None without a monitor.
        teacher: On its device, perhaps sharded.
        untrained: Loads the random student, on the main rank alone.
    """
    if built.monitor is None or evaluator is None:
        log.say("  monitor  none: without --monitor nobody will know whether it helped")
        return ""
    judge_teacher = partial(judge, built, run, "teacher", teacher, evaluator)
    # a sharded one answers only when all ranks ask it
    found = judge_teacher() if is_sharded(teacher) else from_main(judge_teacher)
    return from_main(
        lambda: _beside(built, run, state, log, found, judge(built, run, "random", untrained(), evaluator))
    )


def _beside(built: Watched, run: RunDirectory, state: TrainState, log: Log, teacher: Result, random: Result) -> str:
    """Say the two, and what the reader must know of them."""
    monitor = built.monitor
    assert monitor is not None
    write_json(run.path / "monitor.json", monitor.describe())
    before = state.notes.get("protocol")
    if before != monitor.protocol and (state.step < built.total_steps or is_unjudged(built, state)):
        state.notes.pop("best", None)  # other scores than these cannot be compared with
        state.notes["protocol"] = monitor.protocol
    elif before != monitor.protocol:
        log.say(
            "           the monitor has changed since the run ended: what was the best then is judged anew and stays"
        )
    line = f"teacher {100 * (teacher.selection or 0):.1f}  random {100 * (random.selection or 0):.1f}"
    log.say(f"  monitor  {_place(built)}  {PROTOCOLS[monitor.kind]}  {line}  (selection half)")
    if (unreadable := len(monitor.report) - teacher.n) > 0:
        log.say(f"           {unreadable} of its {len(monitor.report)} images to report on cannot be read")
    if warning := caution([teacher]):
        log.say(f"           {warning}")
    return line


def watch(
    built: Watched,
    state: TrainState,
    log: Log,
    metrics: Metrics,
    *,
    evaluator: Evaluator | None,
    beside: str,
    keep_best: Callable[[Backbone, Mapping[str, Any]], None],
) -> list[Monitor]:
    """The callback that judges the student while it trains, by default ten times; none without a monitor."""
    if built.monitor is None or evaluator is None:
        return []
    monitor = Monitor(
        evaluator,
        metrics,
        log,
        every=check_every(built.config.monitoring.every, built.total_steps),
        total_steps=built.total_steps,
        title=PROTOCOLS[built.monitor.kind],
        beside=beside,
        keep_best=keep_best,
    )
    return [monitor]


def is_unjudged(built: Watched, state: TrainState) -> bool:
    """Whether an interruption cut the last judgement short."""
    return built.monitor is not None and state.notes.get("judged") != state.step


def judge(built: Watched, run: RunDirectory, role: Role, backbone: Backbone, evaluator: Evaluator) -> Result:
    """Measure a backbone and write the result, unless the same weights were judged the same way before.

    On the main rank alone, or on all of them where the backbone is sharded.
    """
    monitor, config = built.monitor, built.config
    assert monitor is not None
    kind, source = monitor.kind, asdict(backbone.source)
    task, protocol = f"{kind}:{_place(built)}", monitor.protocol
    held_out = not share_a_place(built.source, monitor.report.source)
    wanted = (role, task, protocol, held_out, source["sha256"])

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
        task=task,
        role=role,
        model=short(config.teacher if role == "teacher" else config.student),
        metric="top1",
        value=value,
        ci95=wilson_interval(value, images),
        n=images,
        protocol=dict(protocol),
        seed=config.seed,
        seconds=round(time.perf_counter() - started, 1),
        source=source,
        selection=scores[f"{kind}_select"],
        held_out=held_out,
    )
    if is_main():
        write_result(run.results, f"{kind}-{role}", result)
    return result


def _place(built: Watched) -> str:
    return shown(built.config.monitor or "")
