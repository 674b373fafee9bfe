"""`attar distill-vl`: a model of images and sentences distilled into a small one, composed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attar._version import __version__
from attar.config import DistillVlConfig
from attar.evaluation.outputs import fingerprint
from attar.export import check_ships, costs_table, tower_costs, write_two_towers
from attar.methods import DimeFm
from attar.models import Backbone, TextTower, load_two_towers
from attar.recipes.describe import places_in_words, say_damage, say_results
from attar.recipes.dime_fm import completed
from attar.recipes.judging import is_unjudged, judge, judge_baselines, watch
from attar.recipes.kept import keep, take_back
from attar.recipes.training import Training, resume, train
from attar.recipes.vl_assembly import (
    VlAssembly,
    assemble_towers,
    build_method,
    start_image_tower,
    teacher_at_rest,
)
from attar.recipes.vl_describe import say_towers, towers_binding, towers_card, towers_facts
from attar.reports import Result, read_results, verdict, write_page
from attar.train import TrainState, build_state, embeddings_spared
from attar.types import Evaluator
from attar.utils.distributed import (
    from_main,
    is_main,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
)
from attar.utils.io import given_by, write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, open_run, record_settings, refuse_to_replace, start_run
from attar.utils.signals import polite_stop


@dataclass(frozen=True)
class DistillVlReport:
    """What a finished run leaves behind.

    Attributes:
        run: The run directory.
        student: Folder of the best student, both towers, as open_clip loads them.
        results: Zero-shot of student, teacher and random student; empty without a monitor.
        verdict: One sentence: did it help?
    """

    run: Path
    student: Path
    results: tuple[Result, ...]
    verdict: str


def distill_vl(config: DistillVlConfig) -> DistillVlReport:
    """Distil both towers as `config` says, or go on with the run that is in `config.out`.

    Raises:
        UserError: If models, data, settings, stored features or the run directory do not work out.
        NonFiniteError: If a loss or gradient is not finite.
        TrainingError: If a step needs more memory than the device has, or another rank has gone.
        Interrupted: If SIGINT or SIGTERM came; a checkpoint is saved.
    """
    config = completed(config)
    device = pick_device(config.device)
    with (
        polite_stop(),
        process_group(device, timeout_s=config.timeout_s),
        peers_in_words(),
        contextlib.ExitStack() as held,
    ):
        opened = open_run(Path(config.out), config, resume_anyway=config.resume_anyway)
        directory = from_main(lambda: held.enter_context(opened))
        if directory.is_new:
            from_main(lambda: refuse_to_replace(directory))
        with one_of_each_machine_first():
            built = assemble_towers(config, device)
        check_ships(built.student, built.text)
        run = from_main(lambda: start_run(directory))
        log = Log(run.log, is_silent=not is_main())
        held.enter_context(log.last_words())
        say_towers(log, built)
        say_damage(log, built.source, run.bad_files)
        features = run.path / "features"
        if config.features is not None:
            features = Path(config.features).expanduser()
            held.enter_context(given_by("--features", features))
        method, texts = build_method(built, features, log)
        state = build_state(method.learner, built.student, config.optim, device=device, groups=embeddings_spared)
        method.learner = state.wrapped
        identity = _identity(built, run, texts)
        resume(run, state, identity, log, total_steps=built.total_steps, anyway=config.resume_anyway)
        if is_main():
            record_settings(run, config, version=__version__)
        beside = judge_baselines(
            built,
            run,
            state,
            log,
            evaluator=_beside(built, built.teacher.text),
            teacher=built.teacher.image,
            untrained=partial(_untrained, built),
        )
        if state.step < built.total_steps or is_unjudged(built, state):
            with teacher_at_rest(built):
                _train(built, method, run, state, log, identity, beside)
        return from_main(lambda: _finish(built, run, state, log))


def _train(
    built: VlAssembly,
    method: DimeFm,
    run: RunDirectory,
    state: TrainState,
    log: Log,
    identity: Mapping[str, Any],
    beside: str,
) -> None:
    keep_best = partial(_keep_best, built, run, state)
    evaluator = _beside(built, built.text)
    judges = partial(watch, built, state, log, evaluator=evaluator, beside=beside, keep_best=keep_best)
    train(training_of(built, method), built.config, run, state, log, identity=identity, judges=judges)


def training_of(built: VlAssembly, method: DimeFm) -> Training:
    """What is trained, on what, for how long."""
    return Training(
        method=method,
        stream=built.stream,
        batch_size=built.config.batch_size,
        optim=built.config.optim,
        total_steps=built.total_steps,
        device=built.device,
        workers=built.workers,
        takes_whole_steps=True,
    )


def _beside(built: VlAssembly, text: TextTower) -> Evaluator | None:
    """Judges image towers beside a text tower; None without a monitor."""
    return None if built.monitor is None else built.monitor.beside(text)


def _untrained(built: VlAssembly) -> Backbone:
    """The image tower with random weights, which stands beside the teacher's text tower."""
    image = start_image_tower(built.config, "random", built.teacher).to(built.device)
    image.normalise_with(built.student.preprocess)
    return image


def _keep_best(
    built: VlAssembly, run: RunDirectory, state: TrainState, backbone: Backbone, best: Mapping[str, Any]
) -> None:
    keep(run, best["step"], lambda folder: _write(folder, built, backbone, towers_card(built, state.notes, best)))


def _write(folder: Path, built: VlAssembly, image: Backbone, card: str) -> None:
    scale = built.teacher.text.logit_scale or built.config.dime_fm.scale
    write_two_towers(folder, image, built.text, card=card, scale=scale, licence=towers_binding(built))


def _finish(built: VlAssembly, run: RunDirectory, state: TrainState, log: Log) -> DistillVlReport:
    """Write the last student, judge the one that was kept, write card and page; say what came out."""
    last: dict[str, Any] = {"role": "student", "step": state.step}
    _write(run.student_last, built, state.plain("student"), towers_card(built, state.notes, last))
    best = state.notes.get("best") or last
    if built.monitor is None or best is last or not take_back(run, best):
        best = last
        _write(run.student, built, state.plain("student"), towers_card(built, state.notes, best))
    # the files that ship are what is reported, not what stood in memory when they were written
    kept = load_two_towers(str(run.student))
    kept.image.to(built.device), kept.text.to(built.device)
    if built.monitor is not None:
        judge(built, run, "student", kept.image, built.monitor.beside(kept.text))
    results = read_results(run.results)
    costs = tower_costs(kept, built.teacher)
    write_text(
        run.student / "README.md",
        towers_card(built, state.notes, best, results, costs_table(*costs), student=run.student),
    )
    told = {f"cost of {name}": cost.told for name, cost in zip(("student", "teacher"), costs, strict=True)}
    write_json(run.path / "about.json", towers_facts(built, state.notes, best, student=run.student) | told)
    page = write_page(run.path)
    sentence = verdict(results)
    say_results(log, results, best)
    for name, words in told.items():
        log.say(f"  {name}: {words}")
    log.say(f"\n  {sentence}\n")
    log.say(f"  student  {run.student}\n  report   {page}")
    return DistillVlReport(run.path, run.student, tuple(results), sentence)


def _identity(built: VlAssembly, run: RunDirectory, texts: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint belongs to: the run, its images, sentences and captions, and the weights that teach."""
    return {
        "run_id": run.run_id,
        "data_fingerprint": built.source.fingerprint,
        "places": places_in_words(built.config.images, built.source),
        **texts,
        "teacher": built.teacher.image.source.sha256 or fingerprint(built.teacher.image),
    }
