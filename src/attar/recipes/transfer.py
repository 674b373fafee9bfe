"""`attar transfer`: a small model for a task, from few labels and a pool of images, in three stages."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar._version import __version__
from attar.config import TransferConfig
from attar.data.loader import ViewDataset, default_workers
from attar.data.sampler import ViewOrder
from attar.data.sources import Source, named_places, open_source
from attar.errors import ConfigError
from attar.models import Backbone, load_backbone
from attar.recipes.assembly import check_damage, check_first_view, check_ships
from attar.recipes.describe import (
    describe,
    origin_facts,
    say_licence,
    start_facts,
    starting_weights,
    weights_hash,
)
from attar.recipes.task_results import (
    Compute,
    Judge,
    say_task_results,
    task_card,
    task_facts,
    task_verdict,
    write_card_and_model,
)
from attar.recipes.tasks import open_task
from attar.recipes.transfer_stages import Run, adapt, finetune, transfer_on_pool
from attar.reports import Result
from attar.reports.transfer import write_transfer_page
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
            workers = default_workers() if config.workers is None else config.workers
            task = open_task(config, workers=workers)
            pool = open_pool(config)
            student = load_task_student(config).to(device)
            task.check_ships(task.new_model(student, head=config.head))
        directory = from_main(lambda: start_run(directory))
        if is_main():
            record_settings(directory, config, version=__version__)
        log = Log(directory.log, is_silent=not is_main())
        held.enter_context(log.last_words())
        judge = Judge(task, pool, config, directory.results)
        run = Run(config, device, workers, directory.path, log, task, judge, Compute(), pool)
        _say_header(run, student)
        return _all_stages(run, student)


def _all_stages(run: Run, student: Backbone) -> TransferReport:
    config, log, about = run.config, run.log, run.out / "about.json"
    teacher = None if config.teacher is None or config.pretrain == "none" else load_task_teacher(config).to(run.device)
    if teacher is not None and config.student_weights == "random":
        student.normalise_with(teacher.preprocess)
    if teacher is not None:
        log.say(f"  teacher  {describe(teacher)}")
        say_licence(log, teacher.source)
    if is_main():
        write_json(about, origin_facts(teacher) | start_facts(student) | _pool_facts(run))
    model, adapted = run.with_head(student, config.head), None
    run.compute.measure(teacher, model)
    if teacher is not None:
        if config.pretrain == "task":
            asked = run.with_head(teacher, config.adapt.head)
            run.compute.measure(asked, model)
            adapted = adapt(run, asked)
        transfer_on_pool(run, adapted, teacher, model)
    finetune(run, model, "finetune", from_start=config.pretrain == "task")
    final = run.out / "student"
    if config.pretrain != "none" and config.scratch:
        with seeded_torch(config.seed, "initialisation"):
            scratch = load_task_student(config).to(run.device)
        scratch.normalise_with(student.preprocess)
        finetune(run, run.with_head(scratch, config.head), "scratch")

    def report() -> TransferReport:
        results = run.judge.results()
        sentence = task_verdict(run.judge, config)
        compute = run.compute.table(run.outcomes, config, pool=len(run.pool or ()))
        write_json(run.out / "compute.json", compute)
        write_card_and_model(final, model, run.task, config, results, compute, sentence)
        write_json(about, task_facts(config) | weights_hash(final, "model.safetensors"))
        write_text(final / "README.md", task_card(run.task, config, results, compute, sentence))
        say_task_results(log, results, compute)
        page = write_transfer_page(run.out, sentence)
        log.say(f"\n  {sentence}\n\n  student  {final}\n  report   {page}")
        return TransferReport(run.out, final, tuple(results), sentence, compute)

    return from_main(report)


def _pool_facts(run: Run) -> dict[str, str]:
    """The images that were transferred on; labels are what the run's config names."""
    if run.pool is None:
        return {}
    return {
        "pool": "; ".join(map(str, named_places(run.config.pool, run.pool))),
        "images": f"{len(run.pool):,}, fingerprint {run.pool.fingerprint}",
    }


def load_task_teacher(config: TransferConfig) -> Backbone:
    """On the CPU."""
    assert config.teacher is not None
    return load_backbone(
        config.teacher,
        weights=config.teacher_weights,
        img_size=config.teacher_img_size or config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )


def load_task_student(config: TransferConfig) -> Backbone:
    """As it starts, on the CPU."""
    return load_backbone(
        config.student,
        weights=config.student_weights,
        img_size=config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )


def open_pool(config: TransferConfig) -> Source | None:
    """The unlabelled images; None where nothing is transferred."""
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


def _say_header(run: Run, student: Backbone) -> None:
    config, task, log = run.config, run.task, run.log
    names = task.class_names
    log.say(f"  task     {config.task}, pretrain {config.pretrain}")
    log.say(f"  student  {describe(student)}{'' if config.head == 'linear' else f', head {config.head}'}")
    say_licence(log, *starting_weights(student))
    counts = ", ".join(f"{count:,} {part}" for part, count in task.counts.items())
    log.say(f"  labels   {counts}; {len(names)} classes: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    log.say(f"           {task.origin}")
    for place in named_places(config.pool, run.pool) if run.pool is not None else ():
        log.say(f"  pool     {place}")
    for said in task.seen_in(run.pool).values() if run.pool is not None and is_main() else ():
        log.say(f"           {said}")
    wait_for_all()
