"""`attar distill`: the whole run, composed. What is learned is in `methods`, how it runs in `train`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar._version import __version__
from attar.config import DistillConfig
from attar.data.loader import ViewDataset, training_batches
from attar.data.sources import Source, places_of
from attar.errors import TrainingError
from attar.evaluation import wilson_interval
from attar.export import write_student
from attar.models import Backbone
from attar.recipes.assembly import Assembly, assemble, load_student
from attar.recipes.describe import card, facts, say_damage, say_header, say_results, short
from attar.reports import Result, Role, read_results, verdict, write_page, write_result
from attar.train import (
    BadFiles,
    Callback,
    Checkpoints,
    ConsoleLog,
    LoopSettings,
    Metrics,
    Monitor,
    Schedule,
    TensorBoard,
    TrainState,
    base_lr,
    build_state,
    fit,
    is_sharded,
    load_checkpoint,
)
from attar.types import Batch
from attar.utils.distributed import (
    from_main,
    is_main,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
    rank,
    world_size,
)
from attar.utils.io import write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, record_settings, start_run
from attar.utils.signals import polite_stop

_TARGET_STATISTICS_STEPS = 50  # batches that standardised targets are measured on


@dataclass(frozen=True)
class DistillReport:
    """What a finished run leaves behind.

    Attributes:
        run: The run directory.
        student: Folder of the best student, an ordinary timm model.
        results: k-NN of student, teacher and random student; empty without a monitor.
        verdict: One sentence: did it help?
    """

    run: Path
    student: Path
    results: tuple[Result, ...]
    verdict: str


def distill(config: DistillConfig) -> DistillReport:
    """Distil a teacher into a student as `config` says, or go on with the run that is in `config.out`.

    Raises:
        UserError: If models, data, settings or the run directory do not work out; before the first step.
        NonFiniteError: If a loss or gradient is not finite.
        TrainingError: If a step needs more memory than the device has, or another rank has gone.
        Interrupted: If SIGINT or SIGTERM came; a checkpoint is saved.
    """
    device = pick_device(config.device)
    with polite_stop(), process_group(device, timeout_s=config.parallel.timeout_s), peers_in_words():
        directory = from_main(lambda: open_run(Path(config.out), config, resume_anyway=config.resume_anyway))
        with one_of_each_machine_first():
            built = assemble(config, device)
        run = from_main(lambda: start_run(directory))
        log = Log(run.log, is_silent=not is_main())
        say_header(log, built)
        say_damage(log, built, run.bad_files)
        state = build_state(
            built.method.learner, built.student, config.optim, engine=config.parallel.engine, device=device
        )
        built.method.learner = state.wrapped
        resumed = load_checkpoint(run.checkpoints, state, _identity(run, built.source), say=log.say)
        if resumed is not None:
            done = " (complete)" if state.step >= built.total_steps else ""
            log.say(f"  resume   from {resumed.name}{done}")
        elif not run.is_new:
            log.say("  resume   no checkpoint is whole: from the beginning")
        if is_main():
            record_settings(run, config, version=__version__)
        baselines = _judge_baselines(built, run, state, log)
        if state.step < built.total_steps or _is_unjudged(built, state):
            with _memory_in_words(config):
                _train(built, run, state, log, baselines)
        _, student = next(state.students())  # the first of them; the average would come in the same copy
        return from_main(lambda: _finish(built, run, state, log, student))


def _train(built: Assembly, run: RunDirectory, state: TrainState, log: Log, baselines: str) -> None:
    config = built.config
    img_size = max(built.student.img_size, built.teacher.img_size)
    dataset = ViewDataset(built.source, built.order, config.views, img_size, labels=built.labels)
    batches: Callable[..., Iterator[Batch]] = partial(
        training_batches,
        dataset,
        batch_size=config.batch_size,
        micro_batches=config.optim.accumulate,
        rank=rank(),
        world_size=world_size(),
        workers=built.workers,
    )
    if state.step == 0:
        built.method.prepare(batches(start_step=0, num_steps=min(_TARGET_STATISTICS_STEPS, built.total_steps)))
    settings = LoopSettings(
        total_steps=built.total_steps,
        micro_batches=config.optim.accumulate,
        clip_norm=config.optim.clip_norm,
        device=built.device,
        bf16=_uses_bf16(config, built.device),
    )
    schedule = Schedule(
        base_lr(config.optim, config.batch_size), built.total_steps, built.steps_per_epoch, config.optim
    )
    stream = batches(start_step=state.step, num_steps=built.total_steps)
    fit(built.method, state, stream, schedule, settings, _callbacks(built, run, log, baselines))


@contextlib.contextmanager
def _memory_in_words(config: DistillConfig) -> Iterator[None]:
    """Name the setting to turn when a step does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, pieces = config.batch_size // world_size(), config.optim.accumulate
        more = next((n for n in range(pieces + 1, size + 1) if size % n == 0), None)
        remedy = (
            f"--optim.accumulate {more}, the same batch in smaller pieces" if more else "a smaller --img-size or model"
        )
        reason = ". ".join(str(error).split(". ")[:2]).rstrip(".")
        raise TrainingError(
            f"{size // pieces} views at a time need too much memory ({reason}). Try {remedy}."
        ) from None


def _callbacks(built: Assembly, run: RunDirectory, log: Log, baselines: str) -> list[Callback]:
    config, total = built.config, built.total_steps
    tenth = max(1, math.ceil(total / 10))
    log_every = config.log_every or max(1, total // 100)
    metrics = Metrics(run.metrics, every=log_every, total_steps=total)
    callbacks: list[Callback] = []
    if is_main():
        callbacks += [
            BadFiles(run.bad_files, log, num_samples=len(built.source), max_share=config.max_bad_share),
            ConsoleLog(log, total_steps=total, every=log_every),
            metrics,
        ]
    if config.tensorboard and is_main():
        callbacks.append(TensorBoard(run.path / "tensorboard", every=log_every, total_steps=total))
    if built.monitor is not None:
        callbacks.append(
            Monitor(
                built.monitor,
                metrics,
                log,
                every=config.monitoring.every or tenth,
                total_steps=total,
                beside=baselines,
                keep_best=partial(_keep_best, built, run),
            )
        )
    every = config.checkpoint.every or min(tenth, max(int(built.steps_per_epoch), 100))
    callbacks.append(
        Checkpoints(run.checkpoints, _identity(run, built.source), every=every, keep=config.checkpoint.keep)
    )
    return callbacks


def _keep_best(built: Assembly, run: RunDirectory, backbone: Backbone, best: Mapping[str, Any]) -> None:
    write_student(run.student, backbone, card=card(built, best, []))


def _finish(built: Assembly, run: RunDirectory, state: TrainState, log: Log, student: Backbone) -> DistillReport:
    """Write the last student, judge the one that was kept, write card and page; say what came out."""
    last: dict[str, Any] = {"role": "student", "step": state.step}
    write_student(run.student_last, student, card=card(built, last, []))
    best = state.notes.get("best") if (run.student / "model.safetensors").is_file() else None
    if built.monitor is None or best is None:
        best = last
        write_student(run.student, student, card=card(built, best, []))
    if built.monitor is not None:
        # the file that ships is what is reported, not what stood in memory when it was written
        weights = str(run.student / "model.safetensors")
        kept = load_student(built.config, weights, preprocess=built.student.preprocess)
        _judge(built, run, "student", kept.to(built.device))
    results = read_results(run.results)
    write_text(run.student / "README.md", card(built, best, results))
    write_json(run.path / "about.json", facts(built, best))
    page = write_page(run.path)
    sentence = verdict(results)
    say_results(log, results, best)
    log.say(f"\n  {sentence}\n")
    log.say(f"  student  {run.student}\n  report   {page}")
    return DistillReport(run.path, run.student, tuple(results), sentence)


def _judge_baselines(built: Assembly, run: RunDirectory, state: TrainState, log: Log) -> str:
    """k-NN of teacher and random student, measured once a run on the main rank; a line for the log."""
    if built.monitor is None:
        log.say("  monitor  none: without --monitor nobody will know whether it helped")
        return ""
    judge_teacher = partial(_judge, built, run, "teacher", built.teacher)
    # a sharded one answers only when all ranks ask it
    teacher = judge_teacher() if is_sharded(built.teacher) else from_main(judge_teacher)
    return from_main(partial(_judge_random, built, run, state, log, teacher))


def _judge_random(built: Assembly, run: RunDirectory, state: TrainState, log: Log, teacher: Result) -> str:
    """The untrained student beside its teacher, and what the reader must know of both."""
    assert built.monitor is not None
    write_json(run.path / "monitor.json", built.monitor.describe())
    if state.notes.get("protocol") != built.monitor.protocol:  # other scores than these cannot be compared with
        state.notes.pop("best", None)
        state.notes["protocol"] = built.monitor.protocol
    untrained = load_student(built.config, "random", preprocess=built.student.preprocess)
    random = _judge(built, run, "random", untrained.to(built.device))
    if (unreadable := len(built.monitor.report) - teacher.n) > 0:
        log.say(f"           {unreadable} of the {len(built.monitor.report)} images to report on cannot be read")
    line = f"teacher {100 * (teacher.selection or 0):.1f}  random {100 * (random.selection or 0):.1f}"
    log.say(f"  monitor  {built.config.monitor}  k-NN  {line}  (selection half)")
    if places_of(built.source) & places_of(built.monitor.report.source):
        log.say("           these images lie where those trained on do: nothing below is sure to be held out")
    return line


def _judge(built: Assembly, run: RunDirectory, role: Role, backbone: Backbone) -> Result:
    """Measure a backbone and write the result, unless the same weights were judged the same way before.

    On the main rank alone, or on all of them where the backbone is sharded.
    """
    monitor, config = built.monitor, built.config
    assert monitor is not None
    task, source = f"knn:{config.monitor}", asdict(backbone.source)

    def known() -> Result | None:
        same = (role, task, monitor.protocol, source["sha256"])
        results = read_results(run.results)
        return next((r for r in results if (r.role, r.task, r.protocol, r.source.get("sha256")) == same), None)

    before = from_main(known) if is_sharded(backbone) else known()
    if before is not None:
        return before
    started = time.perf_counter()
    scores = dict(monitor.run(backbone))
    result = Result(
        task=task,
        role=role,
        model=short(config.teacher if role == "teacher" else config.student),
        metric="top1",
        value=scores["knn_report"],
        ci95=wilson_interval(scores["knn_report"], int(scores["knn_images"])),
        n=int(scores["knn_images"]),
        protocol=monitor.protocol,
        seed=config.seed,
        seconds=round(time.perf_counter() - started, 1),
        source=source,
        selection=scores["knn_select"],
    )
    if is_main():
        write_result(run.results, f"knn-{role}", result)
    return result


def _is_unjudged(built: Assembly, state: TrainState) -> bool:
    """Whether an interruption cut the last judgement short."""
    return built.monitor is not None and state.notes.get("judged") != state.step


def _identity(run: RunDirectory, source: Source) -> dict[str, Any]:
    return {"run_id": run.run_id, "data_fingerprint": source.fingerprint}


def _uses_bf16(config: DistillConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"
