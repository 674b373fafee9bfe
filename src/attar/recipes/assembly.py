"""All that a distillation is made of, built and checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.config import DistillConfig
from attar.data.base import lost_images
from attar.data.labelled import open_labelled
from attar.data.loader import ViewDataset, default_workers
from attar.data.references import shown
from attar.data.sampler import ViewOrder
from attar.data.sources import Labels, Source, open_source
from attar.errors import ConfigError, DataError
from attar.evaluation import KnnMonitor
from attar.methods import Hint, LogitDistillation, Method, Proteus, SoftLogits, Supervised
from attar.models import Backbone, LinearClassifier, Preprocess, TaskModel, load_backbone, load_classifier
from attar.models.references import parse_reference
from attar.models.selection import start_from_teacher
from attar.train import most_bad, shard
from attar.utils.distributed import world_size
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
        method: How the student learns, built with both.
        classes: (n,) class of each image and the names of classes where the method learns from them, else None.
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
    method: Method
    classes: tuple[Labels, list[str]] | None
    monitor: KnnMonitor | None
    total_steps: int
    steps_per_epoch: float
    workers: int


def assemble(config: DistillConfig, device: torch.device) -> Assembly:
    """Look at the data, then load both models, and check that all fits; on several ranks each holds a whole student.

    Raises:
        UserError: If something is missing or does not fit.
    """
    _check_shares(config, world_size())
    check_ships(config.student)
    workers = default_workers() if config.workers is None else config.workers
    source = open_source(config.data, reindex=config.reindex)
    check_damage(source, config.max_bad_share)
    order = ViewOrder(len(source), config.seed, config.views.repeats, config.cached_views)
    classes = _open_classes(config, source)
    check_first_view(ViewDataset(source, order, config.views, config.img_size))
    monitor = open_monitor(config, workers)
    teacher = load_teacher(config)
    student = _start_student(config, teacher)
    total_steps = config.max_steps or order.num_steps(config.epochs or 300.0, config.batch_size)
    return Assembly(
        config=config,
        device=device,
        source=source,
        order=order,
        teacher=_place_teacher(teacher, config, device),
        student=student.to(device),
        method=_build_method(
            teacher, student, config, device, classes=classes[1] if classes else [], total_steps=total_steps
        ),
        classes=classes,
        monitor=monitor,
        total_steps=total_steps,
        steps_per_epoch=order.epoch_length / config.batch_size,
        workers=workers,
    )


def _check_shares(config: DistillConfig, ranks: int) -> None:
    """Each rank and micro-batch gets as many views, one at least, and some image is masked; one size does for all."""
    pieces, size, terms = config.optim.accumulate, config.batch_size, config.proteus
    shares, least, is_local = pieces * ranks, _least_masked(config), terms.mask_rule == "paper"
    fitting = max(1, round(size / shares), least if is_local else math.ceil(least / shares)) * shares
    if size % shares:
        raise ConfigError(
            f"batch_size {size} does not divide into {ranks} ranks x {pieces} micro-batches (optim.accumulate)."
            f" Try --batch-size {fitting}."
        )
    images = size // shares if is_local else size
    if images < least:
        raise ConfigError(
            f"proteus.mask_probability {terms.mask_probability:g} of {images} images masks none. Try --batch-size"
            f" {fitting}, or --proteus.mask-probability {math.ceil(100 / images) / 100:g}; 0 leaves the patch term out."
        )


def _least_masked(config: DistillConfig) -> int:
    """Of how many images one is masked; the released rule counts them within a rank's micro-batch."""
    probability = config.proteus.mask_probability
    if config.method != "proteus" or not config.proteus.patch_weight or not probability:
        return 1
    images = math.ceil(1 / probability)
    return images if int(images * probability) else images + 1  # as rounding of floats has it


def check_damage(source: Source, max_share: float) -> None:
    """What damaged shards have lost counts as unreadable, so that half a data set is not taken for the whole."""
    lost = lost_images(source)
    limit = most_bad(len(source) + lost, max_share)
    if lost > limit:
        raise DataError(
            f"about {lost:,} of {len(source) + lost:,} images are lost in {len(source.problems)} damaged shards, more"
            f" than the limit of {limit:,}. {source.problems[0].reason} Mend or remove them, or raise --max-bad-share."
        )


def check_first_view(dataset: ViewDataset) -> None:
    """Images none of which can be read are told now, not when both models are loaded and measured."""
    first = dataset[0]
    if isinstance(first, DataError):
        raise first


def check_ships(student: str) -> None:
    """open_clip loads no image tower without its text tower, so that a student of its own could be no one's model."""
    if parse_reference(student).kind == "open_clip":
        raise ConfigError(
            f"student {student} could not ship: open_clip loads whole models only, of image and text."
            " Take timm's form of it, such as vit_base_patch32_clip_224, or hf:DIR of a clip model."
        )


def _place_teacher(teacher: Backbone, config: DistillConfig, device: torch.device) -> Backbone:
    """The teacher on the device, or this rank's share of it."""
    if config.parallel.shard_teacher and world_size() > 1:
        shard(teacher, device)
        return teacher
    return teacher.to(device)


def _build_method(
    teacher: Backbone,
    student: Backbone,
    config: DistillConfig,
    device: torch.device,
    *,
    classes: Sequence[str],
    total_steps: int,
) -> Method:
    with seeded_torch(config.seed, "heads"):
        match config.method:
            case "proteus":
                small_steps = int(config.proteus.small_share * total_steps)
                method: Method = Proteus(teacher, student, config.proteus, seed=config.seed, small_steps=small_steps)
            case "labels":
                method = Supervised(TaskModel.classifier(student, classes))
            case "hint":
                method = Hint(teacher, student)
            case "logits":
                classifier = _load_classifier(config, teacher, device, len(classes))
                method = LogitDistillation(teacher, classifier, student, config.logits)
            case "soft_logits":
                classifier = _load_classifier(config, teacher, device)
                method = SoftLogits(teacher, classifier, student, config.logits)
    method.learner.to(device)
    return method


def _load_classifier(
    config: DistillConfig, teacher: Backbone, device: torch.device, num_classes: int | None = None
) -> LinearClassifier:
    """The teacher's classifier; with labels, one whose classes are the data's."""
    path = Path(config.teacher_classifier or "").expanduser()
    classifier = load_classifier(path, teacher)
    if num_classes is not None and classifier.out_features != num_classes:
        raise ConfigError(
            f"classifier {path} has {classifier.out_features} classes, the data has {num_classes}."
            " Labels and logits must mean the same classes in the same order. Try --method soft_logits without labels."
        )
    return classifier.to(device)


def _open_classes(config: DistillConfig, source: Source) -> tuple[Labels, list[str]] | None:
    """Labels and class names of the data, where the method learns from them."""
    if config.method not in ("labels", "logits"):
        return None
    classes = source.labels()
    if classes is None:
        places = ", ".join(map(shown, config.data))
        raise DataError(
            f"method {config.method} learns from labels, and {places} has none. Put each class into a folder of its"
            " own, give a Parquet file a column 'label', or use --method proteus."
        )
    if len(classes[1]) < 2:
        raise DataError(
            f"all images are of class '{classes[1][0]}': labels tell nothing apart. Give two classes at least."
        )
    return classes


def _start_student(config: DistillConfig, teacher: Backbone) -> Backbone:
    """The student as it starts; random weights have no statistics of their own and take the teacher's."""
    is_selected = config.student_weights == "teacher"
    student = load_student(config, "random" if is_selected else config.student_weights)
    if is_selected:
        start_from_teacher(student, teacher, layers=config.student_layers)
    if config.normalisation == "imagenet":
        student.normalise_with(Preprocess())
    elif student.source.weights == "random":
        student.normalise_with(teacher.preprocess)
    return student


def load_teacher(config: DistillConfig) -> Backbone:
    """The teacher of a run, on the CPU, with the statistics that the run normalises its images by."""
    teacher = load_backbone(
        config.teacher,
        weights=config.teacher_weights,
        img_size=config.teacher_img_size or config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )
    if config.normalisation == "imagenet":
        teacher.normalise_with(Preprocess())
    return teacher


def load_student(config: DistillConfig, weights: str, *, preprocess: Preprocess | None = None) -> Backbone:
    """The student's architecture with given weights, and given statistics where they are not the architecture's."""
    student = load_backbone(
        config.student,
        weights=weights,
        img_size=config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )
    if preprocess is not None:
        student.normalise_with(preprocess)
    return student


def open_monitor(config: DistillConfig, workers: int) -> KnnMonitor | None:
    """What judges the run's students, None without `--monitor`; its images are drawn by seed."""
    if config.monitor is None:
        return None
    train, test = open_labelled(config.monitor, seed=config.seed, reindex=config.reindex)
    settings = config.monitoring
    return KnnMonitor(
        train, test, limit=settings.limit, k=settings.k, seed=config.seed, crop_pct=settings.crop_pct, workers=workers
    )
