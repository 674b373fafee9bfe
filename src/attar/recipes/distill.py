"""`attar distill`: the whole run, composed. What is learned is in `methods`, how it runs in `train`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar._version import __version__
from attar.config import DistillConfig
from attar.data.base import lost_images
from attar.data.loader import ViewDataset, is_readable, training_batches
from attar.data.sources import named_places
from attar.errors import TrainingError
from attar.export import write_student
from attar.models import Backbone
from attar.recipes.assembly import Assembly, assemble, load_student
from attar.recipes.describe import card, facts, say_damage, say_header, say_results
from attar.recipes.judging import judge, judge_baselines
from attar.reports import Result, read_results, verdict, write_page
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
    uses_bf16,
    world_size,
)
from attar.utils.io import sha256_file, write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, record_settings, start_run
from attar.utils.signals import polite_stop

_PREPARATION_STEPS = 50  # whose batches a method may look at before it begins


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
    with (
        polite_stop(),
        process_group(device, timeout_s=config.parallel.timeout_s),
        peers_in_words(),
        contextlib.ExitStack() as held,
    ):
        opened = open_run(Path(config.out), config, resume_anyway=config.resume_anyway)
        directory = from_main(lambda: held.enter_context(opened))
        with one_of_each_machine_first():
            built = assemble(config, device)
        run = from_main(lambda: start_run(directory))
        log = Log(run.log, is_silent=not is_main())
        say_header(log, built)
        say_damage(log, built.source, run.bad_files)
        state = build_state(
            built.method.learner, built.student, config.optim, engine=config.parallel.engine, device=device
        )
        built.method.learner = state.wrapped
        resumed = load_checkpoint(
            run.checkpoints, state, _identity(built, run), anyway=config.resume_anyway, say=log.say
        )
        if resumed is not None:
            done = " (complete)" if state.step >= built.total_steps else ""
            log.say(f"  resume   from {resumed.name}{done}")
        elif not run.is_new:
            log.say("  resume   no checkpoint is whole: from the beginning")
        if is_main():
            record_settings(run, config, version=__version__)
        baselines = judge_baselines(built, run, state, log)
        if state.step < built.total_steps or _is_unjudged(built, state):
            with _memory_in_words(config):
                _train(built, run, state, log, baselines)
        student = state.plain("student")
        return from_main(lambda: _finish(built, run, state, log, student))


def _train(built: Assembly, run: RunDirectory, state: TrainState, log: Log, baselines: str) -> None:
    config = built.config
    img_size = max(built.student.img_size, built.teacher.img_size)
    labels = built.classes[0] if built.classes else None
    dataset = ViewDataset(built.source, built.order, config.views, img_size, labels=labels)
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
        said = built.method.prepare(batches(start_step=0, num_steps=min(_PREPARATION_STEPS, built.total_steps)))
        if said:
            log.say("  check    " + said.replace("\n", "\n           "))
    settings = LoopSettings(
        total_steps=built.total_steps,
        micro_batches=config.optim.accumulate,
        clip_norm=config.optim.clip_norm,
        device=built.device,
        bf16=uses_bf16(config.precision, built.device),
    )
    schedule = Schedule(
        base_lr(config.optim, config.batch_size), built.total_steps, built.steps_per_epoch, config.optim
    )
    stream = batches(start_step=state.step, num_steps=built.total_steps)
    fit(built.method, state, stream, schedule, settings, _callbacks(built, run, state, log, baselines))


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


def _callbacks(built: Assembly, run: RunDirectory, state: TrainState, log: Log, baselines: str) -> list[Callback]:
    config, total = built.config, built.total_steps
    tenth = max(1, math.ceil(total / 10))
    log_every = config.log_every or max(1, total // 100)
    metrics = Metrics(run.metrics, every=log_every, total_steps=total)
    callbacks: list[Callback] = []
    if is_main():
        callbacks += [
            _bad_files(built, run, log),
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
                keep_best=partial(_keep_best, built, run, state),
            )
        )
    every = config.checkpoint.every or min(tenth, max(int(built.steps_per_epoch), 100))
    callbacks.append(Checkpoints(run.checkpoints, _identity(built, run), every=every, keep=config.checkpoint.keep))
    return callbacks


def _bad_files(built: Assembly, run: RunDirectory, log: Log) -> BadFiles:
    source, lost = built.source, lost_images(built.source)
    return BadFiles(
        run.bad_files,
        log,
        num_samples=len(source) + lost,
        max_share=built.config.max_bad_share,
        lost=lost,
        is_bad=lambda row, name: row < len(source) and source.name(row) == name and not is_readable(source, row),
    )


def _keep_best(
    built: Assembly, run: RunDirectory, state: TrainState, backbone: Backbone, best: Mapping[str, Any]
) -> None:
    write_student(run.student, backbone, card=card(built, state.notes, best, []))


def _finish(built: Assembly, run: RunDirectory, state: TrainState, log: Log, student: Backbone) -> DistillReport:
    """Write the last student, judge the one that was kept, write card and page; say what came out."""
    last: dict[str, Any] = {"role": "student", "step": state.step}
    write_student(run.student_last, student, card=card(built, state.notes, last, []))
    best = state.notes.get("best") if (run.student / "model.safetensors").is_file() else None
    if built.monitor is None or best is None:
        best = last
        write_student(run.student, student, card=card(built, state.notes, best, []))
    if built.monitor is not None:
        # the file that ships is what is reported, not what stood in memory when it was written
        weights = str(run.student / "model.safetensors")
        kept = load_student(built.config, weights, preprocess=built.student.preprocess)
        judge(built, run, "student", kept.to(built.device))
    results = read_results(run.results)
    write_text(run.student / "README.md", card(built, state.notes, best, results))
    write_json(run.path / "about.json", facts(built, state.notes, best))
    page = write_page(run.path)
    sentence = verdict(results)
    say_results(log, results, best)
    log.say(f"\n  {sentence}\n")
    log.say(f"  student  {run.student}\n  report   {page}")
    return DistillReport(run.path, run.student, tuple(results), sentence)


def _is_unjudged(built: Assembly, state: TrainState) -> bool:
    """Whether an interruption cut the last judgement short."""
    return built.monitor is not None and state.notes.get("judged") != state.step


def _identity(built: Assembly, run: RunDirectory) -> dict[str, Any]:
    """What a checkpoint belongs to: the run, its images, and the weights that teach."""
    identity: dict[str, Any] = {
        "run_id": run.run_id,
        "data_fingerprint": built.source.fingerprint,
        "places": {
            place.name: f"{place.images:,} images (fingerprint {place.fingerprint[:16]})"
            for place in named_places(built.config.data, built.source)
        },
    }
    if built.config.method != "labels":
        identity["teacher"] = built.teacher.source.sha256
        if built.config.teacher_classifier:
            identity["teacher_classifier"] = sha256_file(Path(built.config.teacher_classifier).expanduser())
    return identity
