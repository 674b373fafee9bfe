"""What `attar distill` would do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from attar.config import DistillConfig, PlanConfig
from attar.data.sources import named_places
from attar.export import write_student
from attar.methods import Proteus
from attar.methods.teacher_cache import TeacherCache
from attar.recipes.assembly import Assembly, assemble, load_student, open_monitor
from attar.recipes.describe import describe, starting_weights
from attar.recipes.distill import training_of, views_of
from attar.recipes.kept_answers import KeptAnswers, ask_beforehand, keep_answers
from attar.recipes.planning import concerns
from attar.recipes.planning.monitoring import Judgements, images_to_look_at, kept_on_disk, students_written
from attar.recipes.planning.parts import Concern, Part, Plan, bytes_below, free_at
from attar.recipes.planning.probe import Steps, forget_peaks, held, probe, timed
from attar.recipes.proteus import completed
from attar.recipes.training import check_every, checkpoint_every
from attar.train import TrainState, base_lr, build_state, times_due
from attar.utils.distributed import pick_device


def plan_distill(config: DistillConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Assemble the run, judge as it will on some images, train some steps, save.

    Args:
        config: Of the run.
        settings: Of the plan.
        folder: An empty one, for what is written meanwhile.
    """
    config = completed(config)
    device = pick_device(config.device)
    forget_peaks(device)
    opening, built = timed(lambda: assemble(config, device))
    state = build_state(built.method.learner, built.student, config.optim, device=device)
    built.method.learner = state.wrapped
    baselines, checks, more = _judged(built, state)
    steps, training, answers = _trained(built, state, settings, folder)
    writing, _ = timed(lambda: write_student(folder / "student", state.plain("student"), card=""))
    parts = [
        Part("images opened, models loaded", opening),
        *baselines,
        *training,
        *checks,
        Part("students written", writing, students_written(checks)),
        Part("checkpoints", steps.save, times_due(checkpoint_every(training_of(built), config), built.total_steps)),
    ]
    disk = kept_on_disk(
        config.checkpoint,
        is_judged=config.monitor is not None,
        checkpoint=steps.checkpoint,
        student=bytes_below(folder / "student"),
    )
    if answers is not None:
        disk["teacher's answers"] = answers.bytes
    free = free_at(config.out)
    return Plan(
        verb="distill",
        settings=config.model_dump(mode="json"),
        found=_found(built, answers),
        parts=parts,
        images_per_second=config.batch_size * built.total_steps / sum(part.total for part in training[1:]),
        memory=held(device, more=more, loaders=steps.loaders),
        disk=disk,
        free=free,
        concerns=[
            *concerns.of_the_directory(config),
            *_concerns(built),
            *_of_answers(built, answers),
            *concerns.much_judging(parts),
            *_of_room(built, disk, free),
        ],
        price_per_hour=settings.price_per_hour,
    )


def _trained(
    built: Assembly, state: TrainState, settings: PlanConfig, folder: Path
) -> tuple[Steps, list[Part], KeptAnswers | None]:
    """(steps that ask the teacher, what comes before them and what all of them take, where its answers are kept)."""
    config, total = built.config, built.total_steps
    if isinstance(built.method, Proteus) and 0 < built.method.small_steps < total:
        return *_in_two_sizes(built, state, settings, folder, small_steps=built.method.small_steps), None
    if config.cached_views is None:
        steps = probe(training_of(built), config, state, folder / "run", probe_steps=settings.probe_steps)
        start = Part("first batches, loader, cold steps", steps.start)
        return steps, [start, Part("training steps", steps.seconds, total, steps.known)], None
    here = replace(built, config=config.replace(cache={"folder": None}))  # nothing is written into a folder of others
    opening, kept = timed(lambda: keep_answers(here, views_of(built), folder / "teacher_cache"))
    steps = probe(training_of(built), config, state, folder / "run", probe_steps=settings.probe_steps)
    asking, beforehand = kept.views / config.batch_size, config.cache.beforehand
    start = Part("teacher asked anew, loader, cold steps", opening + steps.start)
    if asking >= total and not beforehand:
        return steps, [start, Part("training steps, teacher asked", steps.seconds, total, steps.known)], kept
    state.step = 0  # the same views again, whose answers are there by now
    again = probe(training_of(built), config, state, folder / "again", probe_steps=settings.probe_steps)
    if beforehand:
        asked = Part(
            "batches, teacher asked beforehand", _asked_beforehand(here, folder, kept, math.ceil(asking)), asking
        )
    else:
        asked = Part("training steps, teacher asked", steps.seconds, asking, steps.known)
    read = Part("training steps, answers read", again.seconds, total if beforehand else total - asking, again.known)
    return steps, [start, asked, read], kept


def _in_two_sizes(
    built: Assembly, state: TrainState, settings: PlanConfig, folder: Path, *, small_steps: int
) -> tuple[Steps, list[Part]]:
    """`_trained` where the views of the first steps are smaller: some steps of each size."""
    training = training_of(built)
    small = probe(
        replace(training, total_steps=small_steps),
        built.config,
        state,
        folder / "small",
        probe_steps=settings.probe_steps,
    )
    state.step = small_steps
    steps = probe(training, built.config, state, folder / "run", probe_steps=settings.probe_steps)
    return steps, [
        Part("first batches, loader, cold steps", small.start),
        Part("training steps, small views", small.seconds, small_steps, small.known),
        Part("training steps, whole views", steps.seconds, training.total_steps - small_steps, steps.known),
    ]


def _asked_beforehand(built: Assembly, folder: Path, kept: KeptAnswers, batches: int) -> float:
    """Seconds of one of so many batches: what ten take more than two, the loader's start being in both."""
    cache, counts = kept.cache, (min(2, batches - 1), min(10, batches))
    seconds = []
    for count in counts:
        fresh = TeacherCache(folder / f"asked-{count}", cache.num_samples, cache.num_views, {}, cache.format)
        ask = partial(ask_beforehand, built, views_of(built), fresh, lambda bad: None, most=count)
        seconds.append(timed(ask)[0])
    return max(0.0, seconds[1] - seconds[0]) / (counts[1] - counts[0])


def _judged(built: Assembly, state: TrainState) -> tuple[list[Part], list[Part], int]:
    """(what is judged before the first step, what is judged afterwards, bytes that the run keeps beyond the probe)."""
    config, whole = built.config, built.monitor
    if whole is None:
        return [], [], 0
    limit = images_to_look_at(config.batch_size, config.monitoring.limit)
    few = open_monitor(config.replace(monitoring={"limit": limit}), built.workers)
    assert few is not None
    judge = Judgements(few.views, whole.views)
    teacher = judge.part("teacher judged", few, built.teacher)
    loading, untrained = timed(lambda: load_student(config, "random", preprocess=built.student.preprocess))
    random = judge.part("random student judged", few, untrained.to(built.device))
    every = check_every(config.monitoring.every, built.total_steps)
    checks = times_due(every, built.total_steps) * len(state.roles)
    after = [
        judge.part(concerns.CHECKS, few, built.student, times=checks),
        judge.part("best student judged", few, built.student),
    ]
    return [teacher, Part("random student built", loading), random], after, judge.more_bytes


def _found(built: Assembly, answers: KeptAnswers | None) -> dict[str, object]:
    config = built.config
    found: dict[str, object] = {
        "method": built.method.title,
        "teacher": describe(built.teacher),
        "student": describe(built.student),
        "data": list(map(str, named_places(config.data, built.source))),
        "training": {
            "steps": built.total_steps,
            "views a step": config.batch_size,
            "epochs": round(built.total_steps / built.steps_per_epoch, 2),
            "learning rate": f"{base_lr(config.optim, config.batch_size):.3g}",
            "on": str(built.device),
        },
    }
    if answers is not None:
        found["answers"] = str(answers).splitlines()
    if built.monitor is not None:
        found["monitor"] = {name: len(part) for name, part in built.monitor.views.parts.items()}
    return found


def _concerns(built: Assembly) -> Iterator[Concern]:
    config, teacher = built.config, built.teacher
    yield from concerns.too_few_images(len(built.source), "data")
    yield from concerns.low_rate(config.optim, config.batch_size)
    if config.method != "labels":
        yield from concerns.untrained_teacher(teacher)
        yield from concerns.unequal_models(teacher, built.student)
        yield from concerns.licence(teacher.source)
    yield from concerns.licence(*starting_weights(built.student))
    if config.method == "proteus" and (config.proteus.feature_weight or config.proteus.patch_weight):
        yield from concerns.unequal_grids(teacher, built.student)
    yield from concerns.of_the_judge(built, "data")


def _of_answers(built: Assembly, answers: KeptAnswers | None) -> Iterator[Concern]:
    if answers is not None:
        yield from concerns.hardly_read_again(answers.views, built.total_steps * built.config.batch_size)


def _of_room(built: Assembly, disk: Mapping[str, int], free: int) -> Iterator[Concern]:
    """Of the run directory, and of the folder of answers where that is another."""
    config, elsewhere = built.config, built.config.cache.folder
    answers = {name: size for name, size in disk.items() if name == "teacher's answers"}
    if elsewhere is None or not answers:
        yield from concerns.too_little_room(disk, free, config.out)
        return
    rest = {name: size for name, size in disk.items() if name not in answers}
    yield from concerns.too_little_room(rest, free, config.out)
    yield from concerns.too_little_room(answers, free_at(elsewhere), elsewhere, flag="cache.folder")
