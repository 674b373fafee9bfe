"""What `attar transfer` would do: each stage that it has, in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from attar.config import PlanConfig, TransferConfig
from attar.data.loader import default_workers
from attar.data.sources import named_places
from attar.export import write_task_model
from attar.models import Backbone, TaskModel
from attar.models.lora import merge_low_rank
from attar.recipes.describe import describe, starting_weights
from attar.recipes.planning import concerns
from attar.recipes.planning.monitoring import images_to_look_at, known_from, loader_start, scaled
from attar.recipes.planning.parts import Concern, Part, Plan, bytes_below, free_at
from attar.recipes.planning.probe import Steps, forget_peaks, held, probe, timed
from attar.recipes.stages import Stage
from attar.recipes.task_results import Compute, Judge
from attar.recipes.tasks import Classification, open_task
from attar.recipes.training import checkpoint_every
from attar.recipes.transfer import load_task_student, load_task_teacher, open_pool
from attar.recipes.transfer_stages import Run, adapt_stage, finetune_stage, pool_stage
from attar.train import build_state, times_due
from attar.utils.distributed import pick_device
from attar.utils.progress import Log

_FEW_TO_CHOOSE_BY = 50


@dataclass
class _Sums:
    """What the stages come to."""

    parts: list[Part] = field(default_factory=list)
    disk: dict[str, int] = field(default_factory=dict)
    loaders: list[int | None] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def plan_transfer(config: TransferConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Open task and pool, and probe each stage. Stages may end sooner, when validation gets no better."""
    device = pick_device(config.device)
    forget_peaks(device)
    workers = default_workers() if config.workers is None else config.workers
    opening, (run, student, teacher) = timed(lambda: _opened(config, device, workers, folder))
    sums = _Sums([Part("images opened, models loaded", opening)])
    stages = _Stages(run, settings, sums)
    model, adapted = run.with_head(student, config.head), None
    if teacher is not None:
        if config.pretrain == "task":
            adapted = stages.adapt(run.with_head(teacher, config.adapt.head))
        stages.transfer(adapted, teacher, model)
    stages.finetune(model)
    free = free_at(config.out)
    doubts = [
        *concerns.of_the_directory(config),
        *_concerns(run, teacher, student),
        *concerns.too_little_room(sums.disk, free, config.out),
    ]
    return Plan(
        verb="transfer",
        settings=config.model_dump(mode="json"),
        found=_found(run, student, teacher),
        parts=sums.parts,
        images_per_second=sums.rates[-2] if len(sums.rates) > 1 else sums.rates[-1],
        memory=held(
            device, more=0, loaders=None if None in sums.loaders else max(filter(None, sums.loaders), default=0)
        ),
        disk=sums.disk,
        free=free,
        concerns=doubts,
        price_per_hour=settings.price_per_hour,
    )


def _opened(
    config: TransferConfig, device: torch.device, workers: int, folder: Path
) -> tuple[Run, Backbone, Backbone | None]:
    """The run, its student and its teacher, as `attar transfer` makes them."""
    task, pool = open_task(config, workers=workers), open_pool(config)
    student = load_task_student(config).to(device)
    teacher = None
    if config.teacher is not None and config.pretrain != "none":
        teacher = load_task_teacher(config).to(device)
        if config.student_weights == "random":
            student.normalise_with(teacher.preprocess)
    judge = Judge(task, pool, config, folder / "results")
    run = Run(config, device, workers, folder, Log(is_silent=True), task, judge, Compute(), pool)
    return run, student, teacher


class _Stages:
    """Probes each stage and adds up what it comes to."""

    def __init__(self, run: Run, settings: PlanConfig, sums: _Sums) -> None:
        self.run, self.settings, self.sums = run, settings, sums
        limit = images_to_look_at(run.config.finetune.batch_size, max(run.task.counts.values()))
        self.few = run.task.few(limit)
        self.judge = Judge(self.few, run.pool, run.config, run.out / "results")
        self.start = loader_start(run.workers) if isinstance(run.task, Classification) else 0.0  # the other has none

    def adapt(self, model: TaskModel) -> TaskModel:
        """Stage A; the model learns a little of it."""
        config = self.run.config.adapt
        is_fitted = config.mode != "full" and config.head == "linear"
        if is_fitted:
            few, whole = ([task.counts["train"], task.counts["val"]] for task in (self.few, self.run.task))
            seconds, _ = timed(lambda: self.few.fit_head(model, refit=config.refit and config.mode == "head"))
            fitting = scaled(seconds, few, whole, start=self.start)
            self.sums.parts.append(Part("adapt: head fitted", fitting, 1, known_from(sum(few), sum(whole))))
        if config.mode != "head":
            self._stage(adapt_stage(self.run, model, is_fitted=is_fitted), model, from_start=is_fitted)
        if config.mode == "lora":
            merge_low_rank(model.backbone.model)
        model.eval().requires_grad_(False)
        self._judged("adapt", model)
        self._written("adapt", model)
        return model

    def transfer(self, adapted: TaskModel | None, teacher: Backbone, model: TaskModel) -> None:
        """Stage B; where views come again, the steps that read the teacher's answers are probed apart."""
        stage = pool_stage(self.run, adapted, teacher, model)
        stream, views = stage.training.stream, self.run.config.transfer.cached_views
        asked = 1.0
        if views is not None:
            asked = min(1.0, views * len(stream.source) / (stage.training.total_steps * stage.training.batch_size))
            known = self.run.out / "transfer" / "teacher_cache"
        self._stage(stage, model, share=asked, name="transfer, teacher asked" if views else "transfer")
        if views is not None:
            self.sums.disk["teacher's answers"] = bytes_below(known)
            if asked < 1:
                again = pool_stage(self.run, adapted, teacher, model)
                self._stage(again, model, share=1 - asked, name="transfer, answers read")
        if adapted is not None:
            self._judged("transfer", model)
        self._written("transfer", model)

    def finetune(self, model: TaskModel) -> None:
        """Stage C, and the same again for the untaught student."""
        config = self.run.config
        stage = finetune_stage(self.run, model, "finetune", from_start=config.pretrain == "task")
        before = len(self.sums.parts)
        self._stage(stage, model, from_start=config.pretrain == "task")
        self._judged("finetune", model)
        if config.pretrain != "none" and config.scratch:
            again = [
                Part(p.what.replace("finetune", "scratch"), p.seconds, p.times, p.known)
                for p in self.sums.parts[before:]
            ]
            self.sums.parts += again
            self.sums.disk |= {
                name.replace("finetune", "scratch"): size
                for name, size in self.sums.disk.items()
                if name.startswith("finetune")
            }
        self._written("finetune", model, copies=2)

    def _stage(
        self, stage: Stage, model: TaskModel, *, from_start: bool = False, share: float = 1.0, name: str | None = None
    ) -> None:
        """Probe a stage, or the share of its steps that are alike."""
        training, config = stage.training, self.run.config
        name = name or stage.folder.name
        method, learner = training.method, training.method.learner
        state = build_state(learner, method.student, training.optim, device=training.device, groups=stage.groups)
        method.learner = state.wrapped
        steps = probe(
            training,
            config,
            state,
            self.run.out / f"probe-{len(self.sums.rates)}",
            probe_steps=self.settings.probe_steps,
        )
        method.learner = learner
        self._add(stage, name, steps, share, from_start=from_start)
        if stage.judge is not None:
            few, whole = self.few.counts["val"], self.run.task.counts["val"]
            seconds, _ = timed(partial(self.judge.score, model))
            validating = scaled(seconds, [few], [whole], start=self.start)
            times = share * times_due(stage.validates_every, training.total_steps) + from_start
            self.sums.parts.append(Part(f"{name}: validations", validating, times, known_from(few, whole)))

    def _add(self, stage: Stage, name: str, steps: Steps, share: float, *, from_start: bool) -> None:
        training, config = stage.training, self.run.config
        total = training.total_steps
        saves = times_due(checkpoint_every(training, config), total)
        self.sums.parts += [
            Part(f"{name}: loader, cold steps", steps.start),
            Part(f"{name}: training steps at most", steps.seconds, share * total, steps.known),
            Part(f"{name}: checkpoints", steps.save, share * saves),
        ]
        self.sums.loaders.append(steps.loaders)
        self.sums.rates.append(training.batch_size / steps.seconds)
        kept = config.checkpoint.keep + 1
        self.sums.disk[f"{stage.folder.name}: {kept} checkpoints"] = kept * steps.checkpoint

    def _judged(self, name: str, model: TaskModel) -> None:
        """All parts that are reported on, with intervals, which take as long for few images as for many."""
        parts = self.run.task.judged_parts
        seconds, rows = timed(lambda: {part: self.few.predict(model, part) for part in parts})
        once, _ = timed(lambda: self.judge(model, name, "model", "probe", fixed=rows))
        few, whole = ([task.counts[part] for part in parts] for task in (self.few, self.run.task))
        whole_seconds = scaled(seconds, few, whole, start=self.start) + once
        self.sums.parts.append(Part(f"{name}: judged", whole_seconds, 1, known_from(sum(few), sum(whole))))

    def _written(self, name: str, model: TaskModel, *, copies: int = 1) -> None:
        folder = self.run.out / f"{name}-model"
        seconds, _ = timed(lambda: write_task_model(folder, model, card=""))
        self.sums.parts.append(Part(f"{name}: model written", seconds, copies))
        self.sums.disk[f"{name}: model"] = copies * bytes_below(folder)


def _found(run: Run, student: Backbone, teacher: Backbone | None) -> dict[str, object]:
    config, task = run.config, run.task
    models = {} if teacher is None else {"teacher": describe(teacher)}
    pool = [] if run.pool is None else list(map(str, named_places(config.pool, run.pool)))
    return {
        "task": f"{config.task}, pretrain {config.pretrain}",
        **models,
        "student": describe(student),
        "labels": {**task.counts, "classes": len(task.class_names)},
        "pool": pool or "none",
    }


def _concerns(run: Run, teacher: Backbone | None, student: Backbone) -> Iterator[Concern]:
    config, task = run.config, run.task
    if run.pool is not None:
        yield from concerns.too_few_images(len(run.pool), "pool")
        seen = task.seen_in(run.pool)
        for part, said in seen.items():
            yield Concern(f"{part} images in training data", said)
        if not seen and task.shares_a_place(run.pool, task.reported_on):
            yield concerns.test_images_in("pool", task.reported_on)
    yield from concerns.too_few_images(task.counts["train"], "labelled", least=2 * len(task.class_names))
    yield from concerns.too_few_to_judge(task.counts[task.reported_on], task.reported_on)
    if task.counts["val"] < _FEW_TO_CHOOSE_BY:
        yield Concern(
            "few images to choose by",
            f"{task.counts['val']:,} images choose when each stage ends, fewer than {_FEW_TO_CHOOSE_BY}: the choice is"
            " mostly chance. Give more with --val.",
        )
    yield from concerns.licence(*starting_weights(student))
    if teacher is not None:
        section = config.transfer
        yield from concerns.low_rate(section.optim, section.batch_size, flag="transfer.optim")
        yield from concerns.untrained_teacher(teacher)
        yield from concerns.unequal_models(teacher, student)
        yield from concerns.licence(teacher.source)
        if config.pretrain == "proteus" or (task.tokens == "patch" and config.pretrain != "task"):
            yield from concerns.unequal_grids(teacher, student)
