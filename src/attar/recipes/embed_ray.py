"""Shards of a pool made by actors of Ray Data, on this machine or a cluster whose machines share a file system."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attar.config import EmbedConfig
from attar.data.shards import Shards
from attar.errors import AttarError, ConfigError, DataError
from attar.utils.progress import track
from attar.utils.signals import handlers_kept

if TYPE_CHECKING:
    from attar.recipes.embed import Embedding


def write_with_ray(config: EmbedConfig, numbers: list[int], folder: Path, shards: Shards) -> Iterator[tuple[int, int]]:
    """Make these shards: (number, unreadable images) of each as it is there.

    A cluster that is connected already is used, else that of RAY_ADDRESS, else one is started here and ended after.

    Raises:
        ConfigError: If ray is not installed.
        DataError: What an actor met.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        remedy = 'Try, in the clone of attar: pip install ".[ray]".'
        raise ConfigError(f"engine is ray, which is not installed ({error}). {remedy}") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with handlers_kept():  # ray's own ends the process with another code, and asks nobody
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield from _written(ray, config, numbers, folder, shards)
    finally:
        if is_ours:
            ray.shutdown()


def _written(
    ray: Any, config: EmbedConfig, numbers: list[int], folder: Path, shards: Shards
) -> Iterator[tuple[int, int]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # ours shows images
    gpus = config.ray.gpus
    if gpus is None:
        gpus = 1.0 if config.device != "cpu" and ray.cluster_resources().get("GPU") else 0.0
    actors = config.ray.actors or _as_many_as_fit(ray.cluster_resources(), config.ray.cpus, gpus, len(numbers))
    done = (
        ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
        .map_batches(
            ShardWriter,
            fn_constructor_args=(config.model_dump(mode="json"), str(folder)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(numbers))),
            num_cpus=config.ray.cpus,
            num_gpus=gpus,
        )
        .iter_rows()
    )
    images = sum(len(shards.rows(number)) for number in numbers)
    for row in track(
        done, "embedding with Ray", total=images, unit="images", size=lambda row: len(shards.rows(int(row["shard"])))
    ):
        if row["error"]:
            raise DataError(str(row["error"]))
        yield int(row["shard"]), int(row["unreadable"])


def _as_many_as_fit(resources: dict[str, float], cpus: float, gpus: float, shards: int) -> int:
    fitting = [resources.get("CPU", 1.0) / cpus, shards, *([resources.get("GPU", 0.0) / gpus] if gpus else [])]
    return max(1, int(min(fitting)))


class ShardWriter:
    """An actor: it opens the images and loads the model once, then makes a shard a call."""

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        self.config, self.folder = EmbedConfig.build(settings), Path(folder)
        self.job: Embedding | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Make the one shard of the batch; an error is told, not raised: Ray would wrap it, and try again."""
        number = int(batch["shard"][0])
        try:
            ((_, unreadable),) = self._open().write([number], self.folder)
            error = ""
        except AttarError as problem:
            unreadable, error = 0, str(problem)
        return {"shard": np.array([number]), "unreadable": np.array([unreadable]), "error": np.array([error])}

    def _open(self) -> Embedding:
        if self.job is None:
            from attar.recipes.embed import Embedding

            torch.set_num_threads(max(1, int(self.config.ray.cpus)))
            self.job = Embedding.of(self.config.replace(workers=self.config.workers or 0, reindex=False))
        return self.job
