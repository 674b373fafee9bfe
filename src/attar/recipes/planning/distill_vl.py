"""What `attar distill-vl` would do. Of what the teacher says, a little is asked, and stands for the whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from attar.config import DistillVlConfig, PlanConfig
from attar.curation.corpus import Corpus
from attar.curation.feature_store import is_sealed, sealed_rows
from attar.data.sentence_stream import Sentences
from attar.data.sources import named_places
from attar.export import check_ships, tower_costs, write_two_towers
from attar.methods import DimeFm, ImageTargets, cached_targets, online_targets, stored_targets
from attar.methods.teacher_cache import TeacherCache
from attar.models import load_two_towers
from attar.recipes.describe import describe, starting_weights
from attar.recipes.dime_fm import completed
from attar.recipes.distill_vl import training_of
from attar.recipes.embed import Embedding
from attar.recipes.planning import concerns
from attar.recipes.planning.embedding import look_at
from attar.recipes.planning.monitoring import (
    Judgements,
    images_to_look_at,
    kept_on_disk,
    known_from,
    students_written,
)
from attar.recipes.planning.parts import Concern, Part, Plan, bytes_below, free_at
from attar.recipes.planning.probe import Steps, forget_peaks, held, probe, timed
from attar.recipes.teacher_features import image_embedding
from attar.recipes.text_features import text_encoder
from attar.recipes.training import check_every, checkpoint_every
from attar.recipes.vl_assembly import (
    VlAssembly,
    assemble_towers,
    method_of,
    open_monitor,
    start_image_tower,
    teacher_at_rest,
)
from attar.recipes.vl_describe import describe_text
from attar.recipes.vl_texts import caption_corpus, sentence_corpus
from attar.train import TrainState, base_lr, build_state, embeddings_spared, times_due
from attar.utils.distributed import pick_device
from attar.utils.progress import Log

_BATCH, _FEW_BATCHES = 256, 5  # of sentences; the first one is cold
_TOKEN_BYTES, _VECTOR_BYTES = 4, 2
_COPIES = 2  # of image vectors: in the pool, and as training reads them


@dataclass(frozen=True)
class Repeated:
    """Few rows in place of many: row i of the many is row i modulo the few.

    Attributes:
        rows: (m, E), the few.
        count: n, the many.
    """

    rows: NDArray[Any]
    count: int

    ndim = 2

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        """Of the many."""
        return self.count, self.rows.shape[1]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        found: NDArray[Any] = self.rows[rows % len(self.rows)]
        return found


def plan_distill_vl(config: DistillVlConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Assemble the run, ask the teacher about a little, judge some images as the run will, train some steps, save."""
    config = completed(config)
    device = pick_device(config.device)
    forget_peaks(device)
    opening, built = timed(lambda: _assembled(config, device))
    asked = _Asked(built, Path(config.features or Path(config.out) / "features").expanduser(), folder, settings)
    method = asked.method()
    state = build_state(method.learner, built.student, config.optim, device=device, groups=embeddings_spared)
    method.learner = state.wrapped
    baselines, checks, more = _judged(built, state)
    with teacher_at_rest(built):
        steps, training = asked.trained(method, state)
    writing, _ = timed(lambda: _write(folder / "student", built, state))
    student = bytes_below(folder / "student")
    loading, towers = timed(lambda: load_two_towers(str(folder / "student")))
    measuring, _ = timed(lambda: tower_costs(towers, built.teacher))
    every = checkpoint_every(training_of(built, method), config)
    parts = [
        Part("images opened, models loaded", opening),
        *asked.parts,
        *baselines,
        *training,
        *checks,
        Part("students written", writing, students_written(checks)),
        Part("checkpoints", steps.save, times_due(every, built.total_steps)),
        Part("best student loaded", loading),
        Part("costs of all towers measured", measuring),
    ]
    kept = kept_on_disk(
        config.checkpoint, is_judged=built.monitor is not None, checkpoint=steps.checkpoint, student=student
    )
    disk, free = asked.disk | kept, free_at(config.out)
    return Plan(
        verb="distill-vl",
        settings=config.model_dump(mode="json"),
        found=_found(built, asked.corpus),
        parts=parts,
        images_per_second=config.batch_size / steps.seconds,
        memory=held(device, more=more, loaders=steps.loaders),
        disk=disk,
        free=free,
        concerns=[
            *concerns.of_the_directory(config),
            *_concerns(built),
            *concerns.much_judging(parts),
            *concerns.too_little_room(disk, free, config.out),
        ],
        price_per_hour=settings.price_per_hour,
    )


def _assembled(config: DistillVlConfig, device: torch.device) -> VlAssembly:
    built = assemble_towers(config, device)
    check_ships(built.student, built.text)
    return built


class _Asked:
    """What the teacher says of images and sentences: a little of it, what all of it takes, and what it is kept in.

    Args:
        built: The run's parts.
        kept: Folder of what was asked before, which is not asked again.
        folder: For what is written meanwhile.
        settings: Of the plan.
    """

    def __init__(self, built: VlAssembly, kept: Path, folder: Path, settings: PlanConfig) -> None:
        self.built, self.kept, self.folder, self.settings = built, kept, folder, settings
        self.parts: list[Part] = []
        self.disk: dict[str, int] = {}
        reading, self.corpus = timed(lambda: sentence_corpus(built.config, folder, Log(is_silent=True)))
        self.parts.append(Part("sentences read", reading))
        self.disk["sentences"] = bytes_below(folder / "corpus")

    def method(self) -> DimeFm:
        """The run's method on the little."""
        config, captions = self.built.config, None
        sentences = self._texts(self.corpus, "text")
        if config.captions is not None:
            reading, corpus = timed(lambda: caption_corpus(config, self.built.source, self.folder))
            self.parts.append(Part("captions read", reading))
            self.disk["captions"] = bytes_below(self.folder / "captions")
            captions = self._texts(corpus, "caption")
        return method_of(self.built, self._targets(), sentences, captions)

    def trained(self, method: DimeFm, state: TrainState) -> tuple[Steps, list[Part]]:
        """(steps that ask the teacher, where that is done, what all steps take)."""
        built, total = self.built, self.built.total_steps
        training, config = training_of(built, method), built.config
        steps = probe(training, config, state, self.folder / "run", probe_steps=self.settings.probe_steps)
        start = Part("loader, cold steps", steps.start)
        if config.cached_views is None:
            return steps, [start, Part("training steps", steps.seconds, total, steps.known)]
        self.disk["teacher's answers"] = bytes_below(self.folder / "views")
        asking = min(float(total), config.cached_views * len(built.source) / config.batch_size)
        parts = [start, Part("training steps, teacher asked", steps.seconds, asking, steps.known)]
        if asking < total:
            state.step = 0  # the same views again, whose answers are there by now
            again = probe(training, config, state, self.folder / "again", probe_steps=self.settings.probe_steps)
            parts.append(Part("training steps, answers read", again.seconds, total - asking, again.known))
        return steps, parts

    def _targets(self) -> ImageTargets:
        built, config = self.built, self.built.config
        if config.teacher_views == "fixed":
            return stored_targets(self._images())
        ask = online_targets(built.teacher.image, pieces=config.optim.accumulate)
        if config.cached_views is None:
            return ask
        return cached_targets(TeacherCache(self.folder / "views", len(built.source), config.cached_views, {}), ask)

    def _images(self) -> Any:
        """(n, E) of the images."""
        config, count = self.built.config, len(self.built.source)
        if is_sealed(self.kept / "image-vectors"):
            return sealed_rows(self.kept / "image-vectors")
        loading, job = timed(lambda: Embedding.of(image_embedding(config, self.folder / "images")))
        seen = look_at(job, self.folder / "images", probe_steps=self.settings.probe_steps)
        self.parts += [Part("teacher loaded to embed", loading), *seen.parts(count, "images seen by the teacher")]
        vectors = np.concatenate([batch.vectors for batch in seen.made])
        self.disk["image vectors"] = round(seen.size * count) + (_COPIES - 1) * _VECTOR_BYTES * count * vectors.shape[1]
        return Repeated(vectors[vectors.any(axis=1)], count)  # zeros where an image cannot be read

    def _texts(self, corpus: Corpus, kind: str) -> Sentences:
        """Vectors, and tokens where a text tower learns from them."""
        tower, precision, device = self.built.teacher.text, self.built.config.precision, self.built.device
        rows: Any
        if is_sealed(self.kept / f"{kind}-vectors"):
            rows = sealed_rows(self.kept / f"{kind}-vectors")
        else:
            starting, encoder = timed(lambda: text_encoder(tower, precision=precision, device=device))
            texts = corpus.rows_at(np.arange(min(len(corpus), _FEW_BATCHES * _BATCH))).column("text").to_pylist()
            batches = [texts[first : first + _BATCH] for first in range(0, len(texts), _BATCH)]
            cold, first = timed(lambda: encoder.encode(batches[0]).cpu())
            warm, rest = timed(lambda: [encoder.encode(batch).cpu() for batch in batches[1:] or batches])
            looked_at = sum(map(len, batches[1:] or batches))
            self.parts += [
                Part(f"{kind} tower started", starting + max(0.0, cold - warm * len(batches[0]) / looked_at)),
                Part(
                    f"{kind}s embedded",
                    warm / looked_at,
                    len(corpus),
                    known_from(looked_at, len(corpus)).replace("images", "sentences"),
                ),
            ]
            found = torch.cat([first, *(rest if len(batches) > 1 else [])]).float()
            vectors = torch.nn.functional.normalize(found, dim=1).half().numpy()
            self.disk[f"{kind} vectors"] = _VECTOR_BYTES * len(corpus) * vectors.shape[1]
            rows = Repeated(vectors, len(corpus))
        return Sentences(rows, self._tokens(corpus, kind) if self.built.learns_text else None)

    def _tokens(self, corpus: Corpus, kind: str) -> Any:
        if is_sealed(self.kept / f"{kind}-tokens"):
            return sealed_rows(self.kept / f"{kind}-tokens")
        texts = corpus.rows_at(np.arange(min(len(corpus), _FEW_BATCHES * _BATCH))).column("text").to_pylist()
        seconds, tokens = timed(lambda: self.built.teacher.text.tokenise(texts).numpy().astype(np.int32))
        known = known_from(len(texts), len(corpus)).replace("images", "sentences")
        self.parts.append(Part(f"{kind}s tokenised", seconds / len(texts), len(corpus), known))
        self.disk[f"{kind} tokens"] = _TOKEN_BYTES * len(corpus) * tokens.shape[1]
        return Repeated(tokens, len(corpus))


def _judged(built: VlAssembly, state: TrainState) -> tuple[list[Part], list[Part], int]:
    """(what is judged before the first step, what is judged afterwards, bytes that the run keeps beyond the probe)."""
    config, whole = built.config, built.monitor
    if whole is None:
        return [], [], 0
    limit = images_to_look_at(config.batch_size, config.monitoring.limit)
    few = open_monitor(config.replace(monitoring={"limit": limit}), built.workers)
    assert few is not None
    teachers, own = few.beside(built.teacher.text), few.beside(built.text)
    judge = Judgements(few.views, whole.views, once=own.classifier)
    teacher = judge.part("teacher judged", teachers, built.teacher.image)
    loading, untrained = timed(lambda: start_image_tower(config, "random", built.teacher).to(built.device))
    random = judge.part("random student judged", teachers, untrained)
    every = check_every(config.monitoring.every, built.total_steps)
    checks = times_due(every, built.total_steps) * len(state.roles)
    after = [
        judge.part(concerns.CHECKS, own, built.student, times=checks),
        judge.part("best student judged", own, built.student),
    ]
    return [teacher, Part("random student built", loading), random], after, judge.more_bytes


def _write(folder: Path, built: VlAssembly, state: TrainState) -> None:
    scale = built.teacher.text.logit_scale or built.config.dime_fm.scale
    write_two_towers(folder, state.plain("student"), built.text, card="", scale=scale)


def _found(built: VlAssembly, corpus: Corpus) -> dict[str, object]:
    config, teacher = built.config, built.teacher
    found: dict[str, object] = {
        "method": DimeFm.title,
        "teacher": f"{describe(teacher.image, is_whole=False)}; text {describe_text(teacher.text)}",
        "student": f"{describe(built.student)}; text {describe_text(built.text)}",
        "images": list(map(str, named_places(config.images, built.source))),
        "texts": {"sentences": len(corpus), **corpus.left_out},
        "training": {
            "steps": built.total_steps,
            "images a step": config.batch_size,
            "epochs": round(built.total_steps / built.steps_per_epoch, 2),
            "learning rate": f"{base_lr(config.optim, config.batch_size):.3g}",
            "on": str(built.device),
        },
    }
    if built.monitor is not None:
        found["monitor"] = {name: len(part) for name, part in built.monitor.views.parts.items()}
    return found


def _concerns(built: VlAssembly) -> Iterator[Concern]:
    teacher = built.teacher.image
    yield from concerns.too_few_images(len(built.source), "images")
    yield from concerns.untrained_teacher(teacher)
    yield from concerns.unequal_models(teacher, built.student)
    yield from concerns.licence(teacher.source, *starting_weights(built.student))
    yield from concerns.of_the_judge(built, "images")
