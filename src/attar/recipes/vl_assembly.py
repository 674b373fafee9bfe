"""All that a distillation of two towers is made of, built and checked before anything is written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attar.config import DistillVlConfig
from attar.data.labelled import given_parts, open_parts
from attar.data.loader import ViewDataset, default_workers
from attar.data.sampler import ViewOrder
from attar.data.sentence_stream import Sentences, SentenceStream
from attar.data.sources import Source, open_source
from attar.errors import ConfigError, DataError
from attar.evaluation import ZeroShotMonitor
from attar.methods import DimeFm, ImageTargets, cached_targets, online_targets, stored_targets
from attar.methods.dime_fm import check_pieces
from attar.methods.teacher import check_patches
from attar.models import (
    Backbone,
    Preprocess,
    TextTower,
    TwoTowers,
    load_backbone,
    load_two_towers,
    small_text_tower,
    with_projection,
)
from attar.recipes.assembly import check_damage, check_first_view
from attar.recipes.teacher_features import (
    held_features,
    image_features,
    image_teacher,
    text_features,
    view_features,
)
from attar.recipes.vl_texts import caption_corpus, check_texts, sentence_corpus
from attar.types import Batch
from attar.utils.distributed import world_size
from attar.utils.progress import Log


@dataclass(frozen=True)
class VlAssembly:
    """The parts of a run, before the teacher was asked.

    Attributes:
        config: Settings.
        device: Where models run.
        source: Images to learn from.
        order: Which view stands where in the stream.
        teacher: Frozen, on the device.
        student: The image tower that learns, on the device.
        text: The text tower that ships beside it: the teacher's own, or a small one that learns.
        monitor: Judges image towers, None without `--monitor`.
        total_steps: Length of the run.
        workers: Loader processes.
    """

    config: DistillVlConfig
    device: torch.device
    source: Source
    order: ViewOrder
    teacher: TwoTowers
    student: Backbone
    text: TextTower
    monitor: ZeroShotMonitor | None
    total_steps: int
    workers: int

    @property
    def learns_text(self) -> bool:
        """Whether the text tower learns."""
        return self.config.dime_fm.text_mode == "small_student"

    @property
    def steps_per_epoch(self) -> float:
        """Perhaps a fraction."""
        return self.order.epoch_length / self.config.batch_size

    @property
    def stream(self) -> ViewDataset:
        """Views, as large as whoever looks at them wants."""
        size = self.student.img_size
        if self.config.teacher_views == "matched":
            size = max(size, self.teacher.image.img_size)
        return ViewDataset(self.source, self.order, self.config.views, size)


def assemble_towers(config: DistillVlConfig, device: torch.device) -> VlAssembly:
    """Look at images and texts, then load student and teacher, and check that all fits.

    Raises:
        UserError: If something is missing or does not fit.
    """
    _check_shares(config, world_size())
    check_texts(config)
    workers = default_workers() if config.workers is None else config.workers
    source = open_source(config.images, reindex=config.reindex)
    check_damage(source, config.max_bad_share)
    order = ViewOrder(len(source), config.seed, config.views.repeats, config.cached_views)
    check_first_view(ViewDataset(source, order, config.views, config.img_size))
    monitor = open_monitor(config, workers)
    trunk = _load_trunk(config, config.student_weights)
    check_patches(trunk)
    check_pieces(trunk, config.optim.accumulate)
    teacher = load_two_towers(
        config.teacher,
        weights=config.teacher_weights,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )
    student = _beside(trunk, teacher, config)
    text = _text_tower(config, teacher.text)
    return VlAssembly(
        config=config,
        device=device,
        source=source,
        order=order,
        teacher=TwoTowers(teacher.image.to(device), teacher.text.to(device)),
        student=student.to(device),
        text=text.to(device),
        monitor=monitor,
        total_steps=config.max_steps or order.num_steps(config.epochs or 100.0, config.batch_size),
        workers=workers,
    )


def start_image_tower(config: DistillVlConfig, weights: str, teacher: TwoTowers) -> Backbone:
    """The student's architecture with given weights and a projection into the teacher's space, on the CPU."""
    return _beside(_load_trunk(config, weights), teacher, config)


def _load_trunk(config: DistillVlConfig, weights: str) -> Backbone:
    return load_backbone(config.student, weights=weights, img_size=config.img_size, seed=config.seed)


def _beside(trunk: Backbone, teacher: TwoTowers, config: DistillVlConfig) -> Backbone:
    if trunk.source.weights == "random":  # which have no statistics of their own
        trunk.normalise_with(Preprocess(teacher.image.preprocess.mean, teacher.image.preprocess.std))
    return with_projection(trunk, teacher.text.embed_dim, seed=config.seed)


def build_method(built: VlAssembly, features: Path, log: Log) -> tuple[DimeFm, dict[str, str]]:
    """(the method, fingerprints of its texts by their kind); asks the teacher for what is not in the folder yet.

    Raises:
        UserError: If what is there does not match teacher and data.
        Interrupted: If a signal came; the same command goes on.
    """
    config, device = built.config, built.device
    ask = partial(text_features, config, tower=built.teacher.text, folder=features, log=log, device=device)
    with held_features(features, log):
        texts = {"sentences": sentence_corpus(config, features, log)}  # both are read before one is embedded
        if config.captions is not None:
            texts["captions"] = caption_corpus(config, built.source, features)
        sentences = ask(texts["sentences"], kind="text")
        captions = ask(texts["captions"], kind="caption") if "captions" in texts else None
        targets = _targets(built, features, log)
    method = method_of(built, targets, sentences, captions)
    return method, {kind: corpus.fingerprint for kind, corpus in texts.items()}


def method_of(built: VlAssembly, targets: ImageTargets, sentences: Sentences, captions: Sentences | None) -> DimeFm:
    """How the student learns what the teacher says of images, sentences and captions; on the device."""
    config = built.config
    method = DimeFm(
        targets,
        SentenceStream(sentences, config.text_batch_size or config.batch_size, config.seed),
        built.student,
        config.dime_fm,
        text=built.text if built.learns_text else None,
        captions=captions,
        pieces=config.optim.accumulate,
    )
    method.learner.to(built.device)
    return method


@contextlib.contextmanager
def teacher_at_rest(built: VlAssembly) -> Iterator[None]:
    """Within the block, that of the steps, towers of the teacher whose features are all stored leave the device."""
    resting: list[nn.Module] = []
    if built.config.teacher_views == "fixed":
        resting.append(built.teacher.image)
    if built.learns_text:
        resting.append(built.teacher.text)
    for tower in resting:
        tower.to("cpu")
    yield
    for tower in resting:
        tower.to(built.device)


def _targets(built: VlAssembly, features: Path, log: Log) -> ImageTargets:
    """The teacher's side of images, by the mode of views."""
    config = built.config
    teacher = image_teacher(config, built.teacher.image, device=built.device)
    if config.teacher_views == "fixed":
        rows, unreadable = image_features(config, teacher, built.source, features, log)
        return _never_unread(stored_targets(rows), unreadable)
    ask = online_targets(built.teacher.image, pieces=config.optim.accumulate)
    if config.cached_views is None:
        return ask
    return cached_targets(view_features(teacher, built.stream, features, log), ask)


def _never_unread(targets: ImageTargets, unreadable: NDArray[np.int64]) -> ImageTargets:
    """Refuse an image that could not be read when the teacher was asked, and that can be now: it has no features."""
    unknown = frozenset(unreadable.tolist())

    def checked(batch: Batch) -> Tensor:
        for sample, name in zip(batch.samples.tolist(), batch.names, strict=True):
            if sample in unknown:
                raise DataError(
                    f"{name} could not be read when the teacher was asked about it, and can be now. Give the same"
                    " command again: it asks the teacher, and goes on from the last checkpoint."
                )
        return targets(batch)

    return checked


def _text_tower(config: DistillVlConfig, teacher: TextTower) -> TextTower:
    if config.dime_fm.text_mode == "frozen_teacher":
        return teacher
    shape = config.text
    return small_text_tower(
        teacher,
        depth=shape.depth,
        width=shape.width,
        num_heads=shape.num_heads,
        layers=shape.layers,
        seed=config.seed,
    )


def _check_shares(config: DistillVlConfig, ranks: int) -> None:
    for flag, size in (("batch-size", config.batch_size), ("text-batch-size", config.text_batch_size)):
        if size is not None and size % ranks:
            raise ConfigError(
                f"{flag} {size} does not divide into {ranks} ranks. Try --{flag} {max(1, round(size / ranks)) * ranks}."
            )


def open_monitor(config: DistillVlConfig, workers: int) -> ZeroShotMonitor | None:
    """What judges the run's students, None without `--monitor`."""
    if config.monitor is None:
        return None
    given, settings = given_parts(config.monitor), config.monitoring
    # nothing is learned from the monitor, so that all of it may judge where it has no parts
    place = given.get("val") or given.get("test") or config.monitor
    (images,) = open_parts([place], reindex=config.reindex)
    return ZeroShotMonitor(
        images,
        _templates(settings.templates),
        limit=settings.limit,
        seed=config.seed,
        crop_pct=settings.crop_pct,
        workers=workers,
    )


def _templates(given: str) -> list[str]:
    """One sentence, or those of a file."""
    file = Path(given).expanduser()
    if "{" in given or not file.is_file():
        return [given]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"templates {file} cannot be read ({error}). Give a text file in UTF-8.") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError(f"templates {file} holds no sentence. Give one a line, such as 'a photo of a {{}}.'")
    return found
