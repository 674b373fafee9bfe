"""`attar transfer`: a small model for a task, from few labels and a pool of images, in three stages."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar._version import __version__
from attar.config import TransferConfig
from attar.config.files import to_yaml
from attar.data.loader import ViewDataset, default_workers
from attar.data.sampler import ViewOrder
from attar.data.sources import Source, named_places, open_source
from attar.errors import ConfigError
from attar.evaluation.metrics import METRICS
from attar.evaluation.splits import images_hash
from attar.export import library_of, read_task_model, with_classifier, write_student, write_task_model
from attar.methods import TASKS, Contrastive, Cosine, Hint, Method, Proteus, Supervised, TaskTransfer
from attar.models import Backbone, TaskModel, load_backbone
from attar.models.lora import add_low_rank, merge_low_rank
from attar.recipes.assembly import check_damage, check_first_view, check_ships
from attar.recipes.describe import describe
from attar.recipes.stages import FittedHead, Outcome, Stage, finish, finished, fit_head, run_stage, weights_hash
from attar.recipes.task_images import TaskImages, open_task_images
from attar.recipes.task_results import Compute, Judge, say_task_results, task_card, task_verdict
from attar.recipes.training import Training
from attar.reports import Result
from attar.train import layer_decay_groups
from attar.train.state import Groups
from attar.utils.distributed import (
    from_main,
    is_main,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
    wait_for_all,
    world_size,
)
from attar.utils.io import write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import open_run, record_settings, start_run
from attar.utils.seeding import seeded_torch
from attar.utils.signals import polite_stop

_POOL_EPOCHS = 100.0
_TASK = TASKS["classification"]


@dataclass(frozen=True)
class TransferReport:
    """What a transfer came to.

    Attributes:
        run: Its directory.
        student: The finished model's folder: one line of timm loads it, head and class names included.
        results: All figures, as in `results/*.json`.
        verdict: Whether transfer helped, in a sentence.
        compute: Multiply-adds and seconds by stage.
    """

    run: Path
    student: Path
    results: tuple[Result, ...]
    verdict: str
    compute: Mapping[str, Any]


@dataclass
class _Run:
    """What the stages share."""

    config: TransferConfig
    device: torch.device
    workers: int
    out: Path
    log: Log
    images: TaskImages
    judge: Judge
    compute: Compute
    pool: Source | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def labels_hash(self) -> str:
        return f"{images_hash(self.images.train)} {images_hash(self.images.val)}"


def transfer(config: TransferConfig) -> TransferReport:
    """Teach a student the task as `config` says, or go on with the run that is in `config.out`.

    Raises:
        UserError: If models, data, settings or the run directory do not work out.
        NonFiniteError: If a loss or gradient is not finite.
        TrainingError: If a step needs more memory than the device has, or another rank has gone.
        Interrupted: If SIGINT or SIGTERM came; what was done is saved.
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
            _check_batches(config)
            check_ships(config.student)
            images = open_task_images(config)
            pool = _open_pool(config)
            student = _load_student(config).to(device)
            if library_of(student) == "timm":
                with_classifier(TaskModel.classifier(student, images.class_names))  # refuses what could not ship
        directory = from_main(lambda: start_run(directory))
        if is_main():
            record_settings(directory, config, version=__version__)
        log = Log(directory.log, is_silent=not is_main())
        workers = default_workers() if config.workers is None else config.workers
        judge = Judge(images, pool, config, directory.results, workers)
        run = _Run(config, device, workers, directory.path, log, images, judge, Compute(), pool)
        _say_header(run, student)
        return _all_stages(run, student)


def _all_stages(run: _Run, student: Backbone) -> TransferReport:
    config, log = run.config, run.log
    teacher = None if config.teacher is None or config.pretrain == "none" else _load_teacher(config).to(run.device)
    run.compute.measure(teacher, student)
    if teacher is not None and config.student_weights == "random":
        student.normalise_with(teacher.preprocess)
    model = _with_head(student, run)
    adapted = None
    if config.pretrain == "task":
        assert teacher is not None
        adapted = _adapt(run, teacher)
    if config.pretrain != "none":
        assert teacher is not None
        _transfer(run, adapted, teacher, model)
    _finetune(run, model, "finetune", from_start=config.pretrain == "task")
    final = run.out / "student"
    if config.pretrain != "none" and config.scratch:
        with seeded_torch(config.seed, "initialisation"):
            scratch = _load_student(config).to(run.device)
        scratch.normalise_with(student.preprocess)
        _finetune(run, _with_head(scratch, run), "scratch")

    def report() -> TransferReport:
        results = run.judge.results()
        sentence = task_verdict(run.judge, config)
        compute = run.compute.table(run.outcomes, config)
        write_json(run.out / "compute.json", compute)
        write_task_model(final, model, card=task_card(config, results, compute, sentence))
        say_task_results(log, results, compute)
        log.say(f"\n  {sentence}\n\n  student  {final}")
        return TransferReport(run.out, final, tuple(results), sentence, compute)

    return from_main(report)


# --- stage A: the teacher learns the task --------------------------------------------------------------------------


def _adapt(run: _Run, teacher: Backbone) -> TaskModel:
    """The adapted teacher, made or read back."""
    config, folder = run.config, run.out / "adapt"
    identity = {"teacher": teacher.source.sha256 or teacher.source.weights, "labelled images": run.labels_hash}
    model = _with_head(teacher, run)
    done = from_main(lambda: finished(folder, identity, anyway=config.resume_anyway))
    if done is not None:
        run.log.say(f"  adapt    done before, teacher in {folder / 'teacher'}")
        model = read_task_model(folder / "teacher", reference=config.teacher).to(run.device)
        run.outcomes["adapt"] = Outcome(done["images"], done["seconds"], done["steps"], done["best"])
        return model
    mode = config.adapt.mode
    run.log.say(f"  adapt    {mode}: {_teacher_line(mode)}")
    started = time.perf_counter()
    fitted = None if mode == "full" else _fit(run, model)
    outcome = Outcome(len(run.images.train) + len(run.images.val), time.perf_counter() - started, 0, None)
    if mode != "head":
        trained = _train_teacher(run, model, mode)
        outcome = Outcome(trained.images, outcome.seconds + trained.seconds, trained.steps, trained.best)

    def write() -> None:
        write_text(folder / "config.yaml", to_yaml(config.adapt, comment=f"attar {__version__}"))
        said = fitted.val if fitted is not None and mode == "head" else None
        results = run.judge(model, "adapt", "teacher", config.teacher or "", fixed={"val": said} if said else {})
        card = task_card(config, results, None, "The teacher after it learned the task from the labels.")
        write_task_model(folder / "teacher", model, card=card)
        finish(folder, identity, outcome)

    from_main(write)
    run.outcomes["adapt"] = outcome
    return model


def _teacher_line(mode: str) -> str:
    return {
        "head": "a linear head on fixed features",
        "lora": "the head, then low-rank additions and the head",
        "full": "the whole teacher",
        "head_then_full": "the head, then the whole teacher",
    }[mode]


def _fit(run: _Run, model: TaskModel) -> FittedHead:
    """Fit the head on the main rank, and hand it to the others."""
    refit = run.config.adapt.refit and run.config.adapt.mode == "head"

    def fit() -> tuple[FittedHead, dict[str, torch.Tensor]]:
        fitted = fit_head(model, run.images, run.config, refit=refit, workers=run.workers)
        return fitted, {name: value.cpu() for name, value in model.head.state_dict().items()}

    fitted, head = from_main(fit)
    model.head.load_state_dict(head)
    score = METRICS["top1"](*fitted.val)
    run.log.say(
        f"  head     penalty {fitted.penalty:.3g}, {100 * score:.1f} % of {len(fitted.val[1]):,} val images right"
    )
    return fitted


def _train_teacher(run: _Run, model: TaskModel, mode: str) -> Outcome:
    config, section = run.config, run.config.adapt
    lr = section.optim.lr or (1e-3 if mode == "lora" else 1e-5)
    if mode == "lora":
        with seeded_torch(config.seed, "low rank"):
            add_low_rank(model.backbone.model, rank=section.lora_rank, alpha=section.lora_alpha)
    groups: Groups = layer_decay_groups(
        model.backbone.model,
        model.head,
        decay=1.0 if mode == "lora" else section.layer_decay,
        head_scale=section.head_lr / lr,
    )
    training = _labelled_training(
        run, model, section.batch_size, section.max_steps, section.views, section.optim.replace(lr=lr)
    )
    stage = Stage(
        folder=run.out / "adapt",
        section=section,
        training=training,
        judge=partial(run.judge.score, model),
        identity={"teacher": model.backbone.source.sha256, "val": images_hash(run.images.val)},
        every=section.every,
        patience=section.patience,
        from_start=mode != "full",
        groups=groups,
    )
    outcome = run_stage(stage, config, run.log)
    if mode == "lora":
        merge_low_rank(model.backbone.model)
    model.eval().requires_grad_(False)
    return outcome


# --- stage B: the student learns what the teacher says ---------------------------------------------------------------


def _transfer(run: _Run, adapted: TaskModel | None, teacher: Backbone, model: TaskModel) -> None:
    config, section, pool = run.config, run.config.transfer, run.pool
    assert pool is not None
    method = _transfer_method(config, adapted, teacher, model)
    method.learner.to(run.device)
    run.log.say(f"  transfer {method.title}, {len(pool):,} images")
    order = ViewOrder(len(pool), config.seed, section.views.repeats)
    total = section.max_steps or order.num_steps(section.epochs or _POOL_EPOCHS, section.batch_size)
    training = Training(
        method=method,
        source=pool,
        order=order,
        views=section.views,
        img_size=max(model.backbone.img_size, teacher.img_size),
        labels=None,
        batch_size=section.batch_size,
        optim=section.optim,
        total_steps=total,
        device=run.device,
        workers=run.workers,
    )
    adapted_folder = run.out / "adapt" / "teacher"
    stage = Stage(
        folder=run.out / "transfer",
        section=section,
        training=training,
        judge=None if adapted is None else partial(run.judge.score, model),
        identity={
            "teacher": teacher.source.sha256 if adapted is None else weights_hash(adapted_folder),
            "places": {place.name: f"{place.images:,} images" for place in named_places(config.pool, pool)},
        },
        every=section.every or max(1, math.ceil(total / 10)),
        keeps_best=False,
    )
    run.outcomes["transfer"] = run_stage(stage, config, run.log)

    def write() -> None:
        if adapted is None:
            write_student(
                run.out / "transfer" / "student", model.backbone, card=task_card(config, [], None, method.title)
            )
            return
        results = run.judge(model, "transfer", "student", config.student)
        card = task_card(config, results, None, "The student before it saw a label.")
        write_task_model(run.out / "transfer" / "student", model, card=card)

    from_main(write)


def _transfer_method(config: TransferConfig, adapted: TaskModel | None, teacher: Backbone, model: TaskModel) -> Method:
    section, student = config.transfer, model.backbone
    with seeded_torch(config.seed, "heads"):
        match config.pretrain:
            case "contrastive":
                return Contrastive(teacher, student, temperature=section.contrastive_temperature)
            case "cosine":
                return Cosine(teacher, student)
            case "hint":
                return Hint(teacher, student)
            case "proteus":
                return Proteus(teacher, student, section.proteus, seed=config.seed)
        assert adapted is not None, "task-oriented transfer without an adapted teacher"
        return TaskTransfer(
            adapted, model, _TASK, temperature=section.temperature, feature_weight=section.feature_weight
        )


# --- stage C: the student learns from the labels ---------------------------------------------------------------------


def _finetune(run: _Run, model: TaskModel, name: str, *, from_start: bool = False) -> None:
    config, section = run.config, run.config.finetune
    run.log.say(f"  {name:8} on {len(run.images.train):,} labelled images")
    model.requires_grad_(True)
    training = _labelled_training(run, model, section.batch_size, section.max_steps, section.views, section.optim)
    before = run.out / "transfer" / "student"
    stage = Stage(
        folder=run.out / name,
        section=section,
        training=training,
        judge=partial(run.judge.score, model),
        identity={
            "val": images_hash(run.images.val),
            "student": weights_hash(before) if name == "finetune" and before.is_dir() else config.student_weights,
        },
        every=section.every,
        patience=section.patience,
        from_start=from_start,
    )
    run.outcomes[name] = run_stage(stage, config, run.log)

    def write() -> None:
        results = run.judge(model, name, "student", config.student)
        if name == "finetune":
            card = task_card(config, results, None, "The student after it was finetuned on the labels.")
            write_task_model(run.out / name / "student", model, card=card)

    from_main(write)


# --- parts -----------------------------------------------------------------------------------------------------------


def _labelled_training(
    run: _Run, model: TaskModel, batch_size: int, max_steps: int, views: Any, optim: Any
) -> Training:
    """Supervised training of a model on the labelled images."""
    stream = run.images.stream
    return Training(
        method=Supervised(model, _TASK),
        source=stream,
        order=ViewOrder(len(stream), run.config.seed, views.repeats),
        views=views,
        img_size=model.backbone.img_size,
        labels=run.images.train.labels,
        batch_size=batch_size,
        optim=optim,
        total_steps=max_steps,
        device=run.device,
        workers=run.workers,
    )


def _with_head(backbone: Backbone, run: _Run) -> TaskModel:
    with seeded_torch(run.config.seed, "task head"):
        return TaskModel.classifier(backbone, run.images.class_names)


def _load_teacher(config: TransferConfig) -> Backbone:
    assert config.teacher is not None
    return load_backbone(
        config.teacher,
        weights=config.teacher_weights,
        img_size=config.teacher_img_size or config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )


def _load_student(config: TransferConfig) -> Backbone:
    return load_backbone(
        config.student,
        weights=config.student_weights,
        img_size=config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )


def _open_pool(config: TransferConfig) -> Source | None:
    if config.pretrain == "none":
        return None
    pool = open_source(config.pool, reindex=config.reindex)
    check_damage(pool, config.max_bad_share)
    order = ViewOrder(len(pool), config.seed, config.transfer.views.repeats)
    check_first_view(ViewDataset(pool, order, config.transfer.views, config.img_size))
    return pool


def _check_batches(config: TransferConfig) -> None:
    """Each rank and micro-batch of each stage gets as many views."""
    for name in ("adapt", "transfer", "finetune"):
        section = getattr(config, name)
        shares = section.optim.accumulate * world_size()
        if section.batch_size % shares:
            raise ConfigError(
                f"{name}.batch_size {section.batch_size} does not divide into {world_size()} ranks x"
                f" {section.optim.accumulate} micro-batches ({name}.optim.accumulate)."
                f" Try --{name}.batch-size {max(1, round(section.batch_size / shares)) * shares}."
            )


def _say_header(run: _Run, student: Backbone) -> None:
    config, images, log = run.config, run.images, run.log
    names = images.class_names
    log.say(f"  pretrain {config.pretrain}")
    log.say(f"  student  {describe(student)}")
    counts = ", ".join(f"{len(part):,} {name}" for name, part in {"train": images.train, **images.parts}.items())
    log.say(f"  labels   {counts}; {len(names)} classes: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    log.say(f"           {images.origin}")
    for place in named_places(config.pool, run.pool) if run.pool is not None else ():
        log.say(f"  pool     {place}")
    wait_for_all()
