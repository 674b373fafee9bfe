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
from attar.data.labelled import open_labelled
from attar.data.loader import ViewDataset, default_workers, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sources import Source, open_source
from attar.errors import TrainingError
from attar.evaluation import KnnMonitor, wilson_interval
from attar.export import model_card, write_student
from attar.methods import Proteus
from attar.models import Backbone, load_backbone
from attar.reports import Result, Role, markdown_table, read_results, verdict, write_page, write_result
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
from attar.utils.distributed import pick_device
from attar.utils.io import write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, start_run
from attar.utils.seeding import seeded_torch
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
        TrainingError: If a step needs more memory than the device has.
        Interrupted: If SIGINT or SIGTERM came; a checkpoint is saved.
    """
    with polite_stop():
        directory = open_run(Path(config.out), config, resume_anyway=config.resume_anyway)
        parts = _build(config)
        run = start_run(directory, config, version=__version__)
        log = Log(run.log)
        _say_header(log, parts)
        state = build_state(parts.method.learner, parts.student, config.optim)
        resumed = load_checkpoint(run.checkpoints, state, _identity(run, parts.source), say=log.say)
        if resumed is not None:
            log.say(f"  resume   from {resumed.name}")
        elif not run.is_new:
            log.say("  resume   no checkpoint is whole: from the beginning")
        baselines = _judge_baselines(parts, run, log)
        if state.step < parts.total_steps:
            with _memory_in_words(config):
                _train(parts, run, state, log, baselines)
        return _finish(parts, run, state, log)


@dataclass(frozen=True)
class _Parts:
    """All that a run is made of, before it touches its directory."""

    config: DistillConfig
    device: torch.device
    source: Source
    order: ViewOrder
    teacher: Backbone
    student: Backbone
    method: Proteus
    monitor: KnnMonitor | None
    total_steps: int
    steps_per_epoch: float
    workers: int


def _build(config: DistillConfig) -> _Parts:
    device = pick_device(config.device)
    workers = default_workers() if config.workers is None else config.workers
    source = open_source(config.data, reindex=config.reindex)
    order = ViewOrder(len(source), config.seed, config.views.repeats)
    monitor = _open_monitor(config, workers)
    teacher = load_backbone(
        config.teacher,
        weights=config.teacher_weights,
        img_size=config.teacher_img_size or config.img_size,
        pos_embed=config.pos_embed,
        seed=config.seed,
    )
    student = _load_student(config, config.student_weights)
    total_steps = config.max_steps or order.num_steps(config.epochs or 300.0, config.batch_size)
    return _Parts(
        config=config,
        device=device,
        source=source,
        order=order,
        teacher=teacher.to(device),
        student=student.to(device),
        method=_build_method(teacher, student, config, device),
        monitor=monitor,
        total_steps=total_steps,
        steps_per_epoch=order.epoch_length / config.batch_size,
        workers=workers,
    )


def _build_method(teacher: Backbone, student: Backbone, config: DistillConfig, device: torch.device) -> Proteus:
    with seeded_torch(config.seed, "heads"):
        method = Proteus(teacher, student, config.proteus, seed=config.seed)
    method.learner.to(device)
    return method


def _load_student(config: DistillConfig, weights: str) -> Backbone:
    return load_backbone(
        config.student, weights=weights, img_size=config.img_size, pos_embed=config.pos_embed, seed=config.seed
    )


def _open_monitor(config: DistillConfig, workers: int) -> KnnMonitor | None:
    if config.monitor is None:
        return None
    train, test = open_labelled(config.monitor, seed=config.seed, reindex=config.reindex)
    settings = config.monitoring
    return KnnMonitor(
        train, test, limit=settings.limit, k=settings.k, seed=config.seed, crop_pct=settings.crop_pct, workers=workers
    )


def _train(parts: _Parts, run: RunDirectory, state: TrainState, log: Log, baselines: str) -> None:
    config = parts.config
    dataset = ViewDataset(parts.source, parts.order, config.views, max(parts.student.img_size, parts.teacher.img_size))
    batches: Callable[..., Iterator[Batch]] = partial(
        training_batches,
        dataset,
        batch_size=config.batch_size,
        parts=config.optim.accumulate,
        workers=parts.workers,
    )
    if state.step == 0:
        parts.method.measure_targets(batches(start_step=0, num_steps=min(_TARGET_STATISTICS_STEPS, parts.total_steps)))
    settings = LoopSettings(
        total_steps=parts.total_steps,
        parts=config.optim.accumulate,
        clip_norm=config.optim.clip_norm,
        device=parts.device,
        bf16=_uses_bf16(config, parts.device),
    )
    schedule = Schedule(
        base_lr(config.optim, config.batch_size), parts.total_steps, parts.steps_per_epoch, config.optim
    )
    stream = batches(start_step=state.step, num_steps=parts.total_steps)
    fit(parts.method, state, stream, schedule, settings, _callbacks(parts, run, log, baselines))


@contextlib.contextmanager
def _memory_in_words(config: DistillConfig) -> Iterator[None]:
    """Name the setting to turn when a step does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, parts = config.batch_size, config.optim.accumulate
        more = next((n for n in range(parts + 1, size + 1) if size % n == 0), None)
        remedy = (
            f"--optim.accumulate {more}, the same batch in smaller parts" if more else "a smaller --img-size or model"
        )
        reason = ". ".join(str(error).split(". ")[:2]).rstrip(".")
        raise TrainingError(f"{size // parts} views at a time need too much memory ({reason}). Try {remedy}.") from None


def _callbacks(parts: _Parts, run: RunDirectory, log: Log, baselines: str) -> list[Callback]:
    config, total = parts.config, parts.total_steps
    tenth = max(1, math.ceil(total / 10))
    log_every = config.log_every or max(1, total // 100)
    metrics = Metrics(run.metrics, every=log_every, total_steps=total)
    callbacks: list[Callback] = [
        BadFiles(run.bad_files, log, num_samples=len(parts.source), max_share=config.max_bad_share),
        ConsoleLog(log, total_steps=total, every=log_every),
        metrics,
    ]
    if config.tensorboard:
        callbacks.append(TensorBoard(run.path / "tensorboard", every=log_every))
    if parts.monitor is not None:
        callbacks.append(
            Monitor(
                parts.monitor,
                parts.student,
                metrics,
                log,
                every=config.monitoring.every or tenth,
                total_steps=total,
                beside=baselines,
                keep_best=partial(_keep_best, parts, run),
            )
        )
    every = config.checkpoint.every or max(1, min(int(parts.steps_per_epoch) or 1, tenth))
    callbacks.append(
        Checkpoints(run.checkpoints, _identity(run, parts.source), every=every, keep=config.checkpoint.keep)
    )
    return callbacks


def _keep_best(parts: _Parts, run: RunDirectory, backbone: Backbone, best: Mapping[str, Any]) -> None:
    write_student(run.student, backbone, card=_card(parts, best, []))


def _finish(parts: _Parts, run: RunDirectory, state: TrainState, log: Log) -> DistillReport:
    """Write the last student, results, model card and page; say what came out."""
    best = state.notes.get("best")
    write_student(run.student_last, parts.student, card=_card(parts, {"role": "student", "step": state.step}, []))
    if parts.monitor is None or best is None:
        best = {"role": "student", "step": state.step}
        write_student(run.student, parts.student, card=_card(parts, best, []))
    else:
        result = _result(parts, "student", parts.config.student, best["scores"], {}, 0.0)
        write_result(run.results, "knn-student", result)
    results = read_results(run.results)
    write_text(run.student / "README.md", _card(parts, best, results))
    write_json(run.path / "about.json", _facts(parts, best))
    page = write_page(run.path)
    sentence = verdict(results)
    _say_results(log, results, best)
    log.say(f"\n  {sentence}\n")
    log.say(f"  student  {run.student}\n  report   {page}")
    return DistillReport(run.path, run.student, tuple(results), sentence)


def _judge_baselines(parts: _Parts, run: RunDirectory, log: Log) -> str:
    """k-NN of teacher and random student, measured once a run; a line for the log."""
    if parts.monitor is None:
        log.say("  monitor  none: without --monitor nobody will know whether it helped")
        return ""
    known = {result.role: result for result in read_results(run.results)}
    write_json(run.path / "monitor.json", parts.monitor.describe())
    shown = []
    roles: tuple[Role, ...] = ("teacher", "random")
    for role in roles:
        if role not in known:
            reference = parts.config.teacher if role == "teacher" else parts.config.student
            backbone = parts.teacher if role == "teacher" else _load_student(parts.config, "random").to(parts.device)
            started = time.perf_counter()
            scores = dict(parts.monitor.run(backbone))
            source = asdict(backbone.source)
            seconds = time.perf_counter() - started
            known[role] = _result(parts, role, reference, scores, source, seconds)
            write_result(run.results, f"knn-{role}", known[role])
        shown.append(f"{role} {100 * known[role].value:.1f}")
    if (unreadable := len(parts.monitor.report) - known["teacher"].n) > 0:
        log.say(f"           {unreadable} of the {len(parts.monitor.report)} images to report on cannot be read")
    line = "  ".join(shown)
    log.say(f"  monitor  {parts.config.monitor}  k-NN  {line}")
    return line


def _result(
    parts: _Parts, role: Role, reference: str, scores: Mapping[str, float], source: dict[str, Any], seconds: float
) -> Result:
    assert parts.monitor is not None
    value, n, settings = scores["knn_report"], int(scores["knn_images"]), parts.config.monitoring
    return Result(
        task=f"knn:{parts.config.monitor}",
        role=role,
        model=_short(reference),
        metric="top1",
        value=value,
        ci95=wilson_interval(value, n),
        n=n,
        protocol={"k": settings.k, "temperature": 0.07, "crop_pct": settings.crop_pct, "bank": len(parts.monitor.bank)},
        seed=parts.config.seed,
        seconds=round(seconds, 1),
        source=source,
    )


def _identity(run: RunDirectory, source: Source) -> dict[str, Any]:
    return {"run_id": run.run_id, "data_fingerprint": source.fingerprint}


def _uses_bf16(config: DistillConfig, device: torch.device) -> bool:
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"


# --- what people read ----------------------------------------------------------------------------------------------


def _say_header(log: Log, parts: _Parts) -> None:
    config = parts.config
    log.say(f"  teacher  {_describe(parts.teacher)}  frozen")
    if parts.teacher.source.weights == "random":
        log.say("           its weights are random: fine for a trial of the machinery, worthless as a teacher")
    log.say(f"  student  {_describe(parts.student)}")
    log.say(
        f"  data     {len(parts.source):,} images    plan  {parts.total_steps:,} steps x {config.batch_size:,}"
        f" views = {parts.total_steps / parts.steps_per_epoch:,.1f} epochs on {parts.device}"
    )
    if config.batch_size > len(parts.source):
        log.say(
            f"           a batch of {config.batch_size} holds several views of each of the {len(parts.source)} images"
        )
    if parts.student.embed_dim > parts.teacher.embed_dim:
        log.say(
            f"           the student is wider than its teacher ({parts.student.embed_dim} and"
            f" {parts.teacher.embed_dim} channels): it will cost more than it can learn"
        )


def _describe(backbone: Backbone) -> str:
    source = backbone.source
    words = [
        _short(source.name),
        f"{backbone.num_parameters / 1e6:.1f}M",
        f"{backbone.img_size} px, {backbone.grid[0]}x{backbone.grid[1]} tokens of {backbone.embed_dim}",
        source.weights,
    ]
    if source.sha256:
        words += [f"sha256 {source.sha256[:8]}", source.licence or ""]
    if source.explained:
        words.append(f"({len(source.explained)} keys unused: {', '.join(key for key, _ in source.explained[:3])})")
    return "  ".join(word for word in words if word)


def _short(reference: str) -> str:
    """A folder by its own name, anything else as it was given."""
    return Path(reference).name if "/" in reference and Path(reference.partition("?")[0]).is_dir() else reference


def _say_results(log: Log, results: list[Result], best: Mapping[str, Any]) -> None:
    if not results:
        return
    log.say(f"\n  {'':10}{'k-NN top-1':>10}   95 % interval   images")
    for r in results:
        note = f"   ({_which(best)})" if r.role == "student" else ""
        interval = f"{100 * r.ci95[0]:.1f} – {100 * r.ci95[1]:.1f}"
        log.say(f"  {r.role:10}{100 * r.value:>10.1f}   {interval:13}   {r.n:,}{note}")


def _which(best: Mapping[str, Any]) -> str:
    name = "moving average" if best["role"] == "ema" else "student"
    return f"{name} at step {best['step']:,}"


def _facts(parts: _Parts, best: Mapping[str, Any]) -> dict[str, str]:
    teacher, config = parts.teacher.source, parts.config
    return {
        "method": "Proteus (ICLR 2025)",
        "teacher": _describe(parts.teacher),
        "teacher weights": f"{Path(teacher.file).name}, sha256 {teacher.sha256}" if teacher.file else "random",
        "teacher licence": teacher.licence or "none (random weights)",
        "student": f"{config.student}, {parts.student.num_parameters / 1e6:.1f}M parameters, {config.img_size} px",
        "weights kept": _which(best),
        "images": f"{len(parts.source):,}, fingerprint {parts.source.fingerprint[:16]}",
        "training": f"{parts.total_steps:,} steps of {config.batch_size:,} views, seed {config.seed}",
        "made with": f"attar {__version__}",
    }


def _card(parts: _Parts, best: Mapping[str, Any], results: list[Result]) -> str:
    title = f"{_short(parts.config.student)} from {_short(parts.config.teacher)}"
    return model_card(title, _facts(parts, best), markdown_table(results))
