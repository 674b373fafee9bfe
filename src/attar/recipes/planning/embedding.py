"""What `attar embed` would do, and how fast a model embeds."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path

from attar.config import EmbedConfig, PlanConfig
from attar.curation.embedding import EmbeddedBatch, written_shards
from attar.curation.pool import describe_shard, shard_name
from attar.data.loader import default_workers
from attar.data.shards import Shards
from attar.data.sources import named_places
from attar.recipes.assembly import check_damage
from attar.recipes.describe import describe
from attar.recipes.embed import Embedding, check_names
from attar.recipes.planning import concerns
from attar.recipes.planning.parts import Part, Plan, bytes_below, free_at
from attar.recipes.planning.probe import forget_peaks, held, steady_seconds, timed
from attar.utils.distributed import pick_device

_COLD = 2
_AHEAD = 2  # batches that each loader process makes before they are asked for, torch's default


@dataclass(frozen=True)
class Embedded:
    """What some batches have told.

    Attributes:
        seconds: Of an image, once all runs evenly.
        start: Seconds before that: loader processes, cold batches.
        writing: Seconds that an image takes in a shard.
        size: Bytes that an image takes in a shard.
        batches: Looked at once all ran evenly.
        made: The batches.
    """

    seconds: float
    start: float
    writing: float
    size: float
    batches: int
    made: list[EmbeddedBatch]

    def parts(self, count: int, what: str = "images embedded") -> list[Part]:
        """For so many images."""
        return [
            Part("loader, cold batches", self.start),
            Part(what, self.seconds, count, f"median of {self.batches} batches"),
            Part("shards written and hashed", self.writing, count, "measured on one, scaled"),
        ]


def look_at(job: Embedding, folder: Path, *, probe_steps: int) -> Embedded:
    """Embed some batches of the images, and write them as a shard."""
    size = job.config.batch_size
    workers = default_workers() if job.config.workers is None else job.config.workers
    skipped = _COLD + _AHEAD * workers
    count = min(len(job.source), (skipped + probe_steps) * size)
    few = replace(job, shards=Shards(count, count, size))
    marks, made = [time.perf_counter()], []
    for batch in few.batches([0]):
        marks.append(time.perf_counter())
        made.append(batch)
    spans = [after - before for before, after in itertools.pairwise(marks)]
    first = min(skipped, len(spans) - 1)
    per_image = [span / len(batch) for span, batch in zip(spans, made, strict=True)][first:]
    seconds = steady_seconds(per_image, workers)
    folder.mkdir(exist_ok=True)
    writing, _ = timed(lambda: list(written_shards(iter(made), few.shards, folder)))
    hashing, _ = timed(lambda: describe_shard(folder / shard_name(0)))
    return Embedded(
        seconds=seconds,
        start=max(0.0, sum(spans[:first]) - seconds * sum(map(len, made[:first]))),
        writing=(writing + hashing) / count,
        size=bytes_below(folder) / count,
        batches=len(per_image),
        made=made,
    )


def plan_embed(config: EmbedConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Open the images, load the model, embed some batches, write them."""
    device = pick_device(config.device)
    forget_peaks(device)
    opening, job = timed(lambda: _opened(config))
    seen = look_at(job, folder / "pool", probe_steps=settings.probe_steps)
    count, free = len(job.source), free_at(config.out)
    disk = {"vectors": round(seen.size * count)}
    return Plan(
        verb="embed",
        settings=config.model_dump(mode="json"),
        found={
            "model": describe(job.backbone),
            "data": list(map(str, named_places(config.data, job.source))),
            "vectors": f"{count:,} of {job.width} numbers in {len(job.shards):,} shards",
        },
        parts=[Part("images opened, model loaded", opening), *seen.parts(count)],
        images_per_second=1 / seen.seconds,
        memory=held(device, more=0, loaders=None),
        disk=disk,
        free=free,
        concerns=[*concerns.licence(job.backbone.source), *concerns.too_little_room(disk, free, config.out)],
        price_per_hour=settings.price_per_hour,
    )


def _opened(config: EmbedConfig) -> Embedding:
    job = Embedding.of(config)
    check_damage(job.source, config.max_bad_share)
    check_names(job.source)
    return job
