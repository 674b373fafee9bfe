"""`attar distill`: the whole run, composed. What is learned is in `methods`, how it runs in `train`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attar._version import __version__
from attar.config import DistillConfig
from attar.data.loader import ViewDataset
from attar.export import write_student
from attar.models import Backbone
from attar.recipes.assembly import Assembly, assemble, load_student
from attar.recipes.describe import binding, card, facts, places_in_words, say_damage, say_header, say_results
from attar.recipes.judging import is_unjudged, judge, judge_baselines, watch
from attar.recipes.kept import keep, take_back
from attar.recipes.kept_answers import ask_beforehand, check_room, keep_answers
from attar.recipes.proteus import completed
from attar.recipes.training import Training, bad_files_of, memory_in_words, resume, train
from attar.reports import Result, read_results, verdict, write_page
from attar.train import TrainState, build_state
from attar.utils.distributed import (
    from_main,
    is_main,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
)
from attar.utils.io import sha256_file, write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, record_settings, refuse_to_replace, start_run
from attar.utils.signals import polite_stop

_REPAYS_COMPILING = 300  # steps


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
    config = completed(config)
    device = pick_device(config.device)
    with (
        polite_stop(),
        process_group(device, timeout_s=config.parallel.timeout_s),
        peers_in_words(),
        contextlib.ExitStack() as held,
    ):
        opened = open_run(Path(config.out), config, resume_anyway=config.resume_anyway)
        directory = from_main(lambda: held.enter_context(opened))
        if directory.is_new:
            from_main(lambda: refuse_to_replace(directory))
        with one_of_each_machine_first():
            built = assemble(config, device)
        run = from_main(lambda: start_run(directory))
        log = Log(run.log, is_silent=not is_main())
        held.enter_context(log.last_words())
        say_header(log, built)
        say_damage(log, built.source, run.bad_files)
        state = build_state(
            built.method.learner, built.student, config.optim, engine=config.parallel.engine, device=device
        )
        built.method.learner = state.wrapped
        identity = _identity(built, run)
        resume(run, state, identity, log, total_steps=built.total_steps, anyway=config.resume_anyway)
        if is_main():
            record_settings(run, config, version=__version__)
        beside = judge_baselines(
            built, run, state, log, evaluator=built.monitor, teacher=built.teacher, untrained=partial(_untrained, built)
        )
        if state.step < built.total_steps or is_unjudged(built, state):
            _train(built, run, state, log, identity, beside)
        student = state.plain("student")
        return from_main(lambda: _finish(built, run, state, log, student))


def _untrained(built: Assembly) -> Backbone:
    return load_student(built.config, "random", preprocess=built.student.preprocess).to(built.device)


def _train(
    built: Assembly, run: RunDirectory, state: TrainState, log: Log, identity: Mapping[str, Any], beside: str
) -> None:
    keep_best = partial(_keep_best, built, run, state)
    judges = partial(watch, built, state, log, evaluator=built.monitor, beside=beside, keep_best=keep_best)
    training = training_of(built)
    if built.config.cached_views is not None:
        kept = keep_answers(built, views_of(built), run.path / "teacher_cache")
        from_main(lambda: check_room(kept))
        log.say("  answers  " + str(kept).replace("\n", "\n           "))
        state.notes["teacher's answers"] = str(kept).replace("\n", "; ")
        if built.config.cache.beforehand:
            bad_files = bad_files_of(built.source, built.config.max_bad_share, run, log)
            bad_files.on_start(state)
            with memory_in_words(training):
                ask_beforehand(built, views_of(built), kept.cache, bad_files.add)
    train(training, built.config, run, state, log, identity=identity, judges=judges)


def training_of(built: Assembly) -> Training:
    """What is trained, on what, for how long."""
    return Training(
        method=built.method,
        stream=views_of(built),
        batch_size=built.config.batch_size,
        optim=built.config.optim,
        total_steps=built.total_steps,
        device=built.device,
        workers=built.workers,
        compiled=(built.method.learner, built.teacher) if _is_worth_compiling(built) else (),
    )


def _is_worth_compiling(built: Assembly) -> bool:
    """As asked; else on a GPU, unless the run is over before it has repaid the seconds that it takes."""
    if built.config.compile == "auto":
        return built.device.type == "cuda" and built.total_steps >= _REPAYS_COMPILING
    return built.config.compile == "on"


def views_of(built: Assembly) -> ViewDataset:
    """What the student learns from, at the larger model's size."""
    return ViewDataset(
        built.source,
        built.order,
        built.config.views,
        max(built.student.img_size, built.teacher.img_size),
        labels=built.classes[0] if built.classes else None,
    )


def _keep_best(
    built: Assembly, run: RunDirectory, state: TrainState, backbone: Backbone, best: Mapping[str, Any]
) -> None:
    keep(run, best["step"], lambda folder: _write(folder, built, state, backbone, best))


def _write(folder: Path, built: Assembly, state: TrainState, student: Backbone, which: Mapping[str, Any]) -> None:
    """The student as it is now, with what is known of it before it is judged."""
    known = card(built, state.notes, which, [])
    write_student(folder, student, card=known, licence=binding(built), crop_pct=built.config.monitoring.crop_pct)


def _finish(built: Assembly, run: RunDirectory, state: TrainState, log: Log, student: Backbone) -> DistillReport:
    """Write the last student, judge the one that was kept, write card and page; say what came out."""
    last: dict[str, Any] = {"role": "student", "step": state.step}
    _write(run.student_last, built, state, student, last)
    best = state.notes.get("best") or last
    if built.monitor is None or best is last or not take_back(run, best):
        best = last
        _write(run.student, built, state, student, best)
    if built.monitor is not None:
        # the file that ships is what is reported, not what stood in memory when it was written
        weights = str(run.student / "model.safetensors")
        kept = load_student(built.config, weights, preprocess=built.student.preprocess)
        judge(built, run, "student", kept.to(built.device), built.monitor)
    results = read_results(run.results)
    write_text(run.student / "README.md", card(built, state.notes, best, results, student=run.student))
    write_json(run.path / "about.json", facts(built, state.notes, best, student=run.student))
    page = write_page(run.path)
    sentence = verdict(results)
    say_results(log, results, best)
    log.say(f"\n  {sentence}\n")
    log.say(f"  student  {run.student}\n  report   {page}")
    return DistillReport(run.path, run.student, tuple(results), sentence)


def _identity(built: Assembly, run: RunDirectory) -> dict[str, Any]:
    """What a checkpoint belongs to: the run, its images, and the weights that teach."""
    identity: dict[str, Any] = {
        "run_id": run.run_id,
        "data_fingerprint": built.source.fingerprint,
        "places": places_in_words(built.config.data, built.source),
    }
    if built.config.method != "labels":
        identity["teacher"] = built.teacher.source.sha256
        if built.config.teacher_classifier:
            identity["teacher_classifier"] = sha256_file(Path(built.config.teacher_classifier).expanduser())
    return identity
