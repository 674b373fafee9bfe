"""What `attar evaluate` and `attar curate` would find; of their time, what the model takes to look at the images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attar.config import CurateConfig, EvaluateConfig, PlanConfig
from attar.curation.pool import Pool
from attar.curation.vectors import guard_views
from attar.data.labelled import given_parts
from attar.data.loader import default_workers
from attar.data.references import shown
from attar.data.sources import Source, open_source
from attar.evaluation.protocols import Need
from attar.evaluation.store import FeatureStore
from attar.evaluation.suite import READS_TEXT, parse_tasks
from attar.models import Backbone
from attar.recipes.candidates import Candidate, candidates
from attar.recipes.curate import Eye, barred_images
from attar.recipes.describe import describe
from attar.recipes.evaluate import Opened, needed_views, open_tasks
from attar.recipes.planning import concerns
from attar.recipes.planning.monitoring import images_to_look_at, known_from
from attar.recipes.planning.parts import Concern, Part, Plan, free_at
from attar.recipes.planning.probe import forget_peaks, held, timed
from attar.utils.distributed import pick_device
from attar.utils.io import cache_dir
from attar.utils.progress import Log

_BATCH = 64


def plan_evaluate(config: EvaluateConfig, settings: PlanConfig, folder: Path) -> Plan:
    """Which tasks can be done on what, and how long each model takes to embed what is not in the cache yet.

    Fits of probes and the training of dense heads are not part of it.
    """
    device = pick_device(config.device)
    forget_peaks(device)
    tasks, judged = parse_tasks(config.tasks), candidates(config)
    opening, (opened, skipped) = timed(lambda: open_tasks(tasks, judged, config, Log(is_silent=True)))
    parts, models, disk = [Part("tasks opened", opening)], dict[str, str](), 0
    for candidate in judged:
        loading, backbone = timed(lambda c=candidate: c.load(None).to(device).eval())  # type: ignore[misc]
        models[candidate.role] = describe(backbone)
        parts.append(Part(f"{candidate.role} loaded", loading))
        own, more = _embedded(candidate, backbone, opened, config, folder)
        parts, disk = [*parts, *own], disk + more
    images = {str(one.task): {name: len(part) for name, part in one.data.parts.items()} for one in opened}
    free = free_at(str(cache_dir()))
    return Plan(
        verb="evaluate",
        settings=config.model_dump(mode="json"),
        found={
            **models,
            "tasks": [
                f"{task}: {', '.join(f'{n:,} {part}' for part, n in own.items())}" for task, own in images.items()
            ],
            "missing": list(skipped) or "none",
            "not in it": "what protocols do with the features, and dense heads, which are trained",
        },
        parts=parts,
        memory=held(device, more=0, loaders=None),
        disk={"features in the cache": disk} if disk else {},
        free=free,
        concerns=[Concern(f"{task} is skipped", reason) for task, reason in skipped.items()],
        price_per_hour=settings.price_per_hour,
    )


def _embedded(
    candidate: Candidate, backbone: Backbone, opened: list[Opened], config: EvaluateConfig, folder: Path
) -> tuple[list[Part], int]:
    """(what embedding takes, bytes that it adds to the cache)."""
    suited = [one for one in opened if candidate.load_text or not READS_TEXT.get(one.task.protocol)]
    groups = needed_views([need for one in suited for need in one.protocol.needs(one.data, backbone.img_size).values()])
    workers = default_workers() if config.workers is None else config.workers
    store = FeatureStore(backbone, cache_dir() / "features", workers=workers)
    missing = {n: _missing(store, *group) for n, group in enumerate(groups)}
    wanted = [group for n, group in enumerate(groups) if missing[n]]
    count = sum(len(need.images) for need, _ in wanted)
    if not count:
        return [], 0
    need, outputs = max(wanted, key=lambda group: len(group[0].images))
    looked_at = images_to_look_at(_BATCH, len(need.images))
    few = need.images.take(np.unique(np.linspace(0, len(need.images) - 1, looked_at).round().astype(np.int64)))
    trial = FeatureStore(backbone, folder / f"features-{candidate.role}", workers=workers)
    seconds, _ = timed(lambda: trial.features(few, need.view, outputs, statistics=need.statistics, name=need.name))
    known = known_from(len(few), count)
    return [Part(f"images seen by {candidate.role}", seconds / len(few), count, known)], sum(missing.values())


def _missing(store: FeatureStore, need: Need, outputs: list[Any]) -> int:
    return store.missing_bytes(need.images, need.view, outputs, statistics=need.statistics)


def plan_curate(config: CurateConfig, settings: PlanConfig, folder: Path) -> Plan:
    """What pool, labelled images and guarded images are, and how long the pool's model takes to look at the latter.

    The search itself is not part of it.
    """
    device = pick_device(config.device)
    forget_peaks(device)
    opening, pool = timed(lambda: Pool.open(config.pool))
    source, barred = pool.source(), barred_images(config)
    asking = None
    if config.queries is not None:
        asking = open_source(given_parts(config.queries).get("train", config.queries))
    eye = Eye(pool, source, config, device, Log(is_silent=True))
    views = guard_views(eye.view)
    guards = barred.guarded if config.leak_threshold is not None else ()
    found: dict[str, Any] = {
        "pool": f"{len(pool):,} images, {pool.width} numbers each, by {pool.manifest.model.reference}",
        "queries": "none" if asking is None else f"{len(asking):,} images",
        "guarded": [f"{shown(place)}: {len(images):,} images, {len(views)} views each" for place, images in guards]
        or "none",
        "not in it": "the search",
    }
    looks: list[tuple[str, Source, list[Any]]] = [] if asking is None else [("queries", asking, [eye.view])]
    looks += [(shown(place), images, views) for place, images in guards]
    parts = [Part("pool opened", opening)]
    if looks:
        loading, backbone = timed(lambda: eye.backbone)
        found["model"] = describe(backbone)
        parts.append(Part("model loaded and tried", loading))
    for name, images, seen in looks:
        looked_at = images_to_look_at(_BATCH // len(seen), len(images))
        seconds, _ = timed(lambda i=images, n=looked_at, v=seen: eye.embed(i, range(n), *v, name="images"))  # type: ignore[misc]
        parts.append(Part(f"{name} seen", seconds / looked_at, len(images), known_from(looked_at, len(images))))
    return Plan(
        verb="curate",
        settings=config.model_dump(mode="json"),
        found=found,
        parts=parts,
        memory=held(device, more=0, loaders=None),
        free=free_at(config.out),
        concerns=list(_of_set(config, len(pool))),
        price_per_hour=settings.price_per_hour,
    )


def _of_set(config: CurateConfig, pool: int) -> Iterator[Concern]:
    if config.budget > pool:
        yield Concern(
            "budget",
            f"--budget {config.budget:,} is more than the pool has ({pool:,} images): all that passes the guards will"
            " be taken, and nothing is chosen. Lower it, or embed more images.",
        )
    yield from concerns.too_few_images(min(config.budget, pool), "pool")
