"""All that a distillation is made of, built and checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from attar.config import DistillConfig
from attar.data.labelled import open_labelled
from attar.data.loader import default_workers
from attar.data.sampler import ViewOrder
from attar.data.sources import Source, open_source
from attar.errors import ConfigError
from attar.evaluation import KnnMonitor
from attar.methods import Proteus
from attar.models import Backbone, load_backbone
from attar.utils.distributed import pick_device
from attar.utils.seeding import seeded_torch


@dataclass(frozen=True)
class Assembly:
    """The parts of a run.

    Attributes:
        config: Settings.
        device: Where models run.
        source: Images to learn from.
        order: Which view stands where in the stream.
        teacher: Frozen.
        student: Learns.
        method: Proteus with both.
        monitor: Judges students, None without `--monitor`.
        total_steps: Length of the run.
        steps_per_epoch: Perhaps a fraction.
        workers: Loader processes.
    """

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


def assemble(config: DistillConfig) -> Assembly:
    """Open the data, load both models, check that they fit.

    Raises:
        UserError: If something is missing or does not fit.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"started as {os.environ['WORLD_SIZE']} processes (torchrun): this version trains in one. Start it plainly."
        )
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
    student = load_student(config, config.student_weights)
    total_steps = config.max_steps or order.num_steps(config.epochs or 300.0, config.batch_size)
    return Assembly(
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


def load_student(config: DistillConfig, weights: str) -> Backbone:
    """The student's architecture with given weights."""
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
