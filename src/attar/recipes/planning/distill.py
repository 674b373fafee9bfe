"""What `attar distill` would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from attar.config import DistillConfig, PlanConfig
from attar.data.sources import named_places
from attar.export import write_student
from attar.recipes.assembly import Assembly, assemble, load_student, open_monitor
from attar.recipes.describe import describe, starting_weights
from attar.recipes.distill import training_of
from attar.recipes.planning import concerns
from attar.recipes.planning.monitoring import Judgements, images_to_look_at, students_kept, students_written
from attar.recipes.planning.parts import Concern, Part, Plan, bytes_below, free_at
from attar.recipes.planning.probe import Steps, forget_peaks, held, probe, timed
from attar.recipes.training import check_every, checkpoint_every
from attar.train import TrainState, build_state, times_due
from attar.utils.distributed import pick_device


def plan_distill(config: DistillConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Assemble the run, judge as it will on some images, train some steps, save.

    Args:
        config: Of the run.
        settings: Of the plan.
        folder: An empty one, for what is written meanwhile.
    """
    device = pick_device(config.device)
    forget_peaks(device)
    opening, built = timed(lambda: assemble(config, device))
    state = build_state(built.method.learner, built.student, config.optim, device=device)
    built.method.learner = state.wrapped
    baselines, checks, more = _judged(built, state)
    steps = probe(training_of(built), config, state, folder / "run", probe_steps=settings.probe_steps)
    writing, _ = timed(lambda: write_student(folder / "student", state.plain("student"), card=""))
    parts = [
        Part("images opened, models loaded", opening),
        *baselines,
        Part("first batches, loader, cold steps", steps.start),
        Part("training steps", steps.seconds, built.total_steps, steps.known),
        *checks,
        Part("students written", writing, students_written(checks)),
        Part("checkpoints", steps.save, times_due(checkpoint_every(training_of(built), config), built.total_steps)),
    ]
    disk = _disk(config, steps, bytes_below(folder / "student"))
    free = free_at(config.out)
    return Plan(
        verb="distill",
        settings=config.model_dump(mode="json"),
        found=_found(built),
        parts=parts,
        images_per_second=config.batch_size / steps.seconds,
        memory=held(device, more=more, loaders=steps.loaders),
        disk=disk,
        free=free,
        concerns=[*_concerns(built), *concerns.too_little_room(disk, free, config.out)],
        price_per_hour=settings.price_per_hour,
    )


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
        judge.part("checks by the monitor", few, built.student, times=checks),
        judge.part("best student judged", few, built.student),
    ]
    return [teacher, Part("random student built", loading), random], after, judge.more_bytes


def _disk(config: DistillConfig, steps: Steps, student: int) -> dict[str, int]:
    kept = config.checkpoint.keep + 1  # the new one is there before the oldest goes
    students = students_kept(config.checkpoint, is_judged=config.monitor is not None)
    return {f"{kept} checkpoints": kept * steps.checkpoint, f"{students} students": students * student}


def _found(built: Assembly) -> dict[str, object]:
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
            "on": str(built.device),
        },
    }
    if built.monitor is not None:
        found["monitor"] = {name: len(part) for name, part in built.monitor.views.parts.items()}
    return found


def _concerns(built: Assembly) -> Iterator[Concern]:
    config, teacher = built.config, built.teacher
    yield from concerns.too_few_images(len(built.source), "data")
    if config.method != "labels":
        yield from concerns.untrained_teacher(teacher)
        yield from concerns.unequal_models(teacher, built.student)
        yield from concerns.licence(teacher.source)
    yield from concerns.licence(*starting_weights(built.student))
    if config.method == "proteus" and (config.proteus.feature_weight or config.proteus.patch_weight):
        yield from concerns.unequal_grids(teacher, built.student)
    yield from concerns.of_the_judge(built, "data")
