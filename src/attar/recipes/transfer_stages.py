"""What the three stages of `attar transfer` learn, and by what; none of them knows which task it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar._version import __version__
from attar.config import TransferConfig
from attar.config.files import to_yaml
from attar.config.transfer import AdaptConfig, FinetuneConfig, HeadKind
from attar.data.loader import ViewDataset
from attar.data.sampler import ViewOrder
from attar.data.sources import Source, named_places
from attar.data.views import TRAINING_VIEWS
from attar.export import read_task_model, write_student
from attar.methods import Contrastive, Cosine, Hint, Method, Proteus, Supervised, TaskTransfer
from attar.methods.teacher_cache import TeacherCache
from attar.models import Backbone, TaskModel
from attar.models.lora import add_low_rank, merge_low_rank
from attar.recipes.describe import licence_noted, low_rate
from attar.recipes.stages import Outcome, Stage, finish, finished, run_stage, weights_hash
from attar.recipes.task_results import Compute, Judge, task_card, task_facts, write_card_and_model
from attar.recipes.tasks import FittedHead, OpenedTask
from attar.recipes.training import Training, check_every
from attar.reports.transfer import HEADINGS
from attar.train import layer_decay_groups
from attar.train.groups import Groups
from attar.utils.distributed import from_main
from attar.utils.io import remove_half_written, write_text
from attar.utils.progress import Log
from attar.utils.seeding import seeded_torch

_POOL_EPOCHS = 100.0


@dataclass
class Run:
    """What the stages share.

    Attributes:
        config: Of the run.
        device: This rank's.
        workers: Loader processes.
        out: Directory of the run.
        log: For people.
        task: With its labelled images.
        judge: Of models on them.
        compute: What a pass costs.
        pool: Unlabelled images, None where nothing is transferred.
        outcomes: Of the stages that are done, by name.
    """

    config: TransferConfig
    device: torch.device
    workers: int
    out: Path
    log: Log
    task: OpenedTask
    judge: Judge
    compute: Compute
    pool: Source | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def with_head(self, backbone: Backbone, kind: HeadKind) -> TaskModel:
        """A model of the task with a new head."""
        with seeded_torch(self.config.seed, "task head"):
            return self.task.new_model(backbone, head=kind)


# --- stage A: the teacher learns the task --------------------------------------------------------------------------


def adapt(run: Run, model: TaskModel) -> TaskModel:
    """The adapted teacher, made from the one given with a new head, or read back."""
    config, folder, teacher = run.config, run.out / "adapt", model.backbone
    labels = " ".join(run.task.hashes[part] for part in ("train", "val"))
    identity = {"teacher": teacher.source.sha256 or teacher.source.weights, "labelled images": labels}
    from_main(lambda: remove_half_written(folder, "teacher"))
    done = from_main(lambda: finished(folder, identity, anyway=config.resume_anyway))
    if done is not None:
        run.log.say(f"  adapt    done before, teacher in {folder / 'teacher'}")
        model = read_task_model(folder / "teacher", reference=config.teacher).to(run.device)
        model.backbone.source = teacher.source  # what it was made from, as its results say of it the first time
        run.outcomes["adapt"] = Outcome(**{name: done[name] for name in done if name != "identity"})
        if not config.adapt.refit:  # else val has been learned from, and what it gave before stands
            from_main(lambda: run.judge(model, "adapt", "teacher", config.teacher or ""))
        return model
    mode = config.adapt.mode
    run.log.say(f"  adapt    {mode}: {_teacher_line(mode)}")
    started = time.perf_counter()
    fitted = None if mode == "full" or config.adapt.head != "linear" else _fit(run, model)
    outcome = Outcome(0, time.perf_counter() - started, 0, None, looks=fitted.passes if fitted else 0)
    if mode != "head":
        trained = _train_teacher(run, model, is_fitted=fitted is not None)
        outcome = replace(trained, seconds=outcome.seconds + trained.seconds, looks=outcome.looks)

    def write() -> None:
        write_text(folder / "config.yaml", to_yaml(config.adapt, comment=f"attar {__version__}"))
        said = fitted.val if fitted is not None and mode == "head" else None
        results = run.judge(model, "adapt", "teacher", config.teacher or "", fixed={"val": said} if said else {})
        sentence = "The teacher after it learned the task from the labels."
        write_card_and_model(folder / "teacher", model, run.task, config, results, None, sentence)
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


def _fit(run: Run, model: TaskModel) -> FittedHead:
    """Fit the head on the main rank, and hand it to the others."""
    refit = run.config.adapt.refit and run.config.adapt.mode == "head"

    def fit() -> tuple[FittedHead, dict[str, torch.Tensor]]:
        fitted = run.task.fit_head(model, refit=refit)
        return fitted, {name: value.cpu() for name, value in model.head.state_dict().items()}

    fitted, head = from_main(fit)
    model.head.load_state_dict(head)
    figure = f"{HEADINGS[run.task.metrics[0]]} {100 * run.task.value(fitted.val):.1f} %"
    run.log.say(f"  head     penalty {fitted.penalty:.3g}, {figure} on {len(fitted.val[0]):,} val images")
    return fitted


def _train_teacher(run: Run, model: TaskModel, *, is_fitted: bool) -> Outcome:
    outcome = run_stage(adapt_stage(run, model, is_fitted=is_fitted), run.config, run.log)
    if run.config.adapt.mode == "lora":
        merge_low_rank(model.backbone.model)
    model.eval().requires_grad_(False)
    return outcome


def adapt_stage(run: Run, model: TaskModel, *, is_fitted: bool) -> Stage:
    """How the teacher learns the labels; with low-rank additions, it has them from here on."""
    config, section = run.config, run.config.adapt
    is_lora = section.mode == "lora"
    lr = section.optim.lr or (1e-3 if is_lora else 1e-5)
    if is_lora:
        with seeded_torch(config.seed, "low rank"):
            add_low_rank(model.backbone.model, rank=section.lora_rank, alpha=section.lora_alpha)
    groups: Groups = layer_decay_groups(
        model.backbone.model,
        model.head,
        decay=1.0 if is_lora else section.layer_decay,
        head_scale=section.head_lr / lr,
    )
    return Stage(
        folder=run.out / "adapt",
        section=section,
        training=_labelled_training(run, model, section, section.optim.replace(lr=lr)),
        judge=partial(run.judge.score, model),
        identity={"teacher": model.backbone.source.sha256, "val": run.task.hashes["val"]},
        every=section.every,
        patience=section.patience,
        from_start=is_fitted,
        groups=groups,
    )


# --- stage B: the student learns what the teacher says ---------------------------------------------------------------


def transfer_on_pool(run: Run, adapted: TaskModel | None, teacher: Backbone, model: TaskModel) -> None:
    """Teach the student on the pool, by the adapted teacher's predictions or without one by the teacher's features."""
    config, stage = run.config, pool_stage(run, adapted, teacher, model)
    method = stage.training.method
    run.log.say(f"  transfer {method.title}, {len(stage.training.stream.source):,} images")
    if told := low_rate(config.transfer.optim, config.transfer.batch_size, flag="transfer.optim"):
        run.log.say(f"           {told}")
    run.outcomes["transfer"] = run_stage(stage, config, run.log)

    def write() -> None:
        folder = run.out / "transfer" / "student"
        if adapted is None:
            card = task_card(run.task, config, [], None, method.title)
            licence = licence_noted(task_facts(config))
            write_student(folder, model.backbone, card=card, licence=licence, crop_pct=config.crop_pct)
            return
        results = run.judge(model, "transfer", "student", config.student)
        sentence = "The student before it saw a label."
        write_card_and_model(folder, model, run.task, config, results, None, sentence)

    from_main(write)


def pool_stage(run: Run, adapted: TaskModel | None, teacher: Backbone, model: TaskModel) -> Stage:
    """How the student learns on the pool."""
    config, section, pool = run.config, run.config.transfer, run.pool
    assert pool is not None
    stream = _pool_stream(run, pool, img_size=max(model.backbone.img_size, teacher.img_size))
    method = _transfer_method(run, adapted, teacher, model, stream)
    method.learner.to(run.device)
    total = section.max_steps or stream.order.num_steps(section.epochs or _POOL_EPOCHS, section.batch_size)
    training = Training(
        method=method,
        stream=stream,
        batch_size=section.batch_size,
        optim=section.optim,
        total_steps=total,
        device=run.device,
        workers=run.workers,
    )
    adapted_folder = run.out / "adapt" / "teacher"
    return Stage(
        folder=run.out / "transfer",
        section=section,
        training=training,
        judge=None if adapted is None else partial(run.judge.score, model),
        identity={
            "teacher": teacher.source.sha256 if adapted is None else weights_hash(adapted_folder),
            "places": {place.name: f"{place.images:,} images" for place in named_places(config.pool, pool)},
        },
        every=check_every(section.every, total),
        keeps_best=False,
    )


def _pool_stream(run: Run, pool: Source, *, img_size: int) -> ViewDataset:
    section = run.config.transfer
    order = ViewOrder(len(pool), run.config.seed, section.views.repeats, section.cached_views)
    return ViewDataset(pool, order, section.views, img_size)


def _transfer_method(
    run: Run, adapted: TaskModel | None, teacher: Backbone, model: TaskModel, stream: ViewDataset
) -> Method:
    config, section, student = run.config, run.config.transfer, model.backbone
    with seeded_torch(config.seed, "heads"):
        match config.pretrain:
            case "contrastive":
                return Contrastive(teacher, student, temperature=section.contrastive_temperature)
            case "cosine":
                return Cosine(teacher, student, tokens=run.task.tokens)
            case "hint":
                return Hint(teacher, student, tokens=run.task.tokens)
            case "proteus":
                return Proteus(teacher, student, section.proteus, seed=config.seed)
        assert adapted is not None, "task-oriented transfer without an adapted teacher"
        return TaskTransfer(
            adapted,
            model,
            run.task.losses,
            temperature=section.temperature,
            feature_weight=section.feature_weight,
            tokens=run.task.tokens,
            cache=_teacher_cache(run, stream),
        )


def _teacher_cache(run: Run, stream: ViewDataset) -> TeacherCache | None:
    """What the adapted teacher has said of the pool's views, in the stage's folder."""
    section, cycle = run.config.transfer, stream.order.cycle
    if cycle is None:
        return None
    identity = {
        "teacher": weights_hash(run.out / "adapt" / "teacher"),
        "images": stream.source.fingerprint,
        "img_size": stream.img_size,
        "seed": run.config.seed,
        "view": TRAINING_VIEWS,
        "features": section.feature_weight > 0,
        "precision": run.config.precision,
        "settings": section.views.model_dump(mode="json"),
    }
    return TeacherCache(run.out / "transfer" / "teacher_cache", len(stream.source), cycle, identity)


# --- stage C: the student learns from the labels ---------------------------------------------------------------------


def finetune(run: Run, model: TaskModel, name: str, *, from_start: bool = False) -> None:
    """Teach a student by the labels, until validation gets no better."""
    config = run.config
    run.log.say(f"  {name:8} on {run.task.counts['train']:,} labelled images")
    run.outcomes[name] = run_stage(finetune_stage(run, model, name, from_start=from_start), config, run.log)

    def write() -> None:
        results = run.judge(model, name, "student", config.student)
        if name == "finetune":
            sentence = "The student after it was finetuned on the labels."
            write_card_and_model(run.out / name / "student", model, run.task, config, results, None, sentence)

    from_main(write)


def finetune_stage(run: Run, model: TaskModel, name: str, *, from_start: bool = False) -> Stage:
    """How a student learns the labels."""
    config, section = run.config, run.config.finetune
    model.requires_grad_(True)
    before = run.out / "transfer" / "student"
    return Stage(
        folder=run.out / name,
        section=section,
        training=_labelled_training(run, model, section, section.optim),
        judge=partial(run.judge.score, model),
        identity={
            "val": run.task.hashes["val"],
            "student": weights_hash(before) if name == "finetune" and before.is_dir() else config.student_weights,
        },
        every=section.every,
        patience=section.patience,
        from_start=from_start,
    )


def _labelled_training(run: Run, model: TaskModel, section: AdaptConfig | FinetuneConfig, optim: Any) -> Training:
    """Supervised training of a model on the labelled images."""
    return Training(
        method=Supervised(model, run.task.losses),
        stream=run.task.stream(model.backbone, section),
        batch_size=section.batch_size,
        optim=optim,
        total_steps=section.max_steps,
        device=run.device,
        workers=run.workers,
    )
