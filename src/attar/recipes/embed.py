"""`attar embed`: images to a pool of vectors, shard by shard, in one process, on several ranks or with Ray."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.config import EmbedConfig
from attar.curation.embedding import EmbeddedBatch, embedded_batches, written_shards
from attar.curation.pool import Manifest, Pool, PoolModel, describe_shard, read_unreadable, shard_name
from attar.data.base import Source
from attar.data.loader import default_workers
from attar.data.references import lasting
from attar.data.shards import Shards
from attar.data.sources import named_places, open_source
from attar.data.views import EVALUATION_VIEWS, EvaluationView
from attar.errors import ConfigError, DataError, LostRankError, RunDirectoryError
from attar.evaluation.outputs import fingerprint
from attar.models import Backbone, load_backbone
from attar.recipes.assembly import check_damage
from attar.recipes.describe import describe, say_damage
from attar.train.callbacks import most_bad
from attar.utils.distributed import (
    from_main,
    is_main,
    launched_ranks,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
    rank,
    uses_bf16,
    world_size,
)
from attar.utils.io import read_json, read_lines, remove_half_written, write_json, write_text
from attar.utils.progress import Log, track
from attar.utils.run_directory import flat_changes, held_directory, refuse_changes, versions
from attar.utils.signals import polite_stop, stop_if_requested

_LOOKS_EVERY = 0.2  # seconds
_LOADED_BY = ("pos_embed", "seed", "trust_torchscript")  # settings that a model's fingerprint sums up


@dataclass(frozen=True)
class Embedding:
    """All that is needed to make a shard; the same in one process, on a rank and in an actor of Ray.

    Attributes:
        config: Settings.
        source: Images.
        backbone: The model, on its device.
        shards: How the images are split over files.
        bf16: Whether the model runs under bf16 autocast.
        width: Numbers in a vector.
    """

    config: EmbedConfig
    source: Source
    backbone: Backbone
    shards: Shards
    bf16: bool
    width: int

    @classmethod
    def of(cls, config: EmbedConfig) -> Embedding:
        """Open the images and load the model.

        Raises:
            UserError: If one of them cannot be had.
        """
        device = pick_device(config.device)
        source = open_source(config.data, reindex=config.reindex)
        backbone = load_backbone(
            config.model,
            weights=config.weights,
            img_size=config.img_size,
            pos_embed=config.pos_embed,
            trust_torchscript=config.trust_torchscript,
            seed=config.seed,
        ).to(device)
        grey = torch.full((1, 3, backbone.img_size, backbone.img_size), 0.5, device=device)
        return cls(
            config=config,
            source=source,
            backbone=backbone.eval(),
            shards=Shards(len(source), config.shard_size, config.batch_size),
            bf16=uses_bf16(config.precision, device),
            width=backbone.embed(grey).shape[1],
        )

    @property
    def view(self) -> EvaluationView:
        """How the model sees an image."""
        return EvaluationView(self.backbone.img_size, self.config.crop_pct)

    def write(self, numbers: list[int], folder: Path, *, title: str = "") -> Iterator[tuple[int, int]]:
        """Make these shards: (number, unreadable images) of each as it is there; with a title a bar is shown."""
        batches = self.batches(numbers)
        images = sum(len(self.shards.rows(number)) for number in numbers)
        watched = track(batches, title, total=images, unit="images", size=len) if title else batches
        yield from written_shards(watched, self.shards, folder)

    def batches(self, numbers: list[int]) -> Iterator[EmbeddedBatch]:
        """What these shards are made of."""
        return embedded_batches(
            self.backbone,
            self.source,
            self.shards,
            numbers,
            view=self.view,
            width=self.width,
            bf16=self.bf16,
            workers=default_workers() if self.config.workers is None else self.config.workers,
        )

    def plan(self) -> dict[str, Any]:
        """What every shard is made by: shards of another plan are no part of this pool."""
        origin, statistics = self.backbone.source, self.backbone.preprocess
        return {
            "model": {
                "reference": origin.name,
                "weights": origin.weights,
                "file": Path(origin.file).name if origin.file else None,
                "sha256": origin.sha256,
                "licence": origin.licence,
                "fingerprint": fingerprint(self.backbone),
                "img_size": self.backbone.img_size,
                "pos_embed": self.config.pos_embed,
                "seed": self.config.seed,
                "trust_torchscript": self.config.trust_torchscript,
                "mean": list(statistics.mean),
                "std": list(statistics.std),
            },
            "view": {
                "img_size": self.view.img_size,
                "crop_pct": self.view.crop_pct,
                "implementation": EVALUATION_VIEWS,
            },
            "precision": "bf16" if self.bf16 else "fp32",
            "width": self.width,
            "batch_size": self.config.batch_size,
            "shard_size": self.config.shard_size,
            "places": [lasting(reference) for reference in self.config.data],
            "fingerprint": self.source.fingerprint,
            "count": len(self.source),
        }


def embed(config: EmbedConfig) -> Pool:
    """Embed images into a folder of shards, or go on with one; what is there is not done again.

    Each shard is done when its file is there. Ranks of torchrun take the missing ones in turn and do not wait for each
    other; the main rank writes the manifest when all are there.

    Returns:
        The pool, on every rank.

    Raises:
        UserError: If the model, the images or the folder do not work out.
        Interrupted: If SIGINT or SIGTERM came; the same command goes on.
        LostRankError: If another rank's shards do not come.

    Example:
        >>> import attar, tempfile
        >>> model = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"
        >>> settings = {"model": model, "weights": "random", "img_size": 32, "data": "playground:0?n=20", "workers": 0}
        >>> pool = attar.embed(attar.EmbedConfig(**settings, out=tempfile.mkdtemp()))
        >>> len(pool), pool.width, pool.ids([3])
        (20, 32, ['playground:0[3]'])
    """
    device = pick_device(config.device)
    if config.engine == "ray" and launched_ranks() > 1:
        raise ConfigError(
            f"engine is ray, and {launched_ranks()} ranks were launched. Give the command to one process."
        )
    with (
        polite_stop(),
        process_group(device, timeout_s=config.timeout_s),
        peers_in_words(),
        contextlib.ExitStack() as held,
    ):
        folder = from_main(lambda: held.enter_context(held_directory(Path(config.out))))
        with one_of_each_machine_first():
            job = Embedding.of(config)
        log = Log(folder / "log.txt", is_silent=not is_main())
        missing = from_main(lambda: _start(job, folder, log))
        if missing and config.engine == "ray":
            from attar.recipes.embed_ray import write_with_ray  # ray is an extra

            _count_bad(job, folder, write_with_ray(config, missing, folder, job.shards))
        elif missing:
            own = missing[rank() :: world_size()]
            _count_bad(job, folder, job.write(own, folder, title="embedding"))
        if is_main():
            _finish(job, folder, missing, log)
        _wait_for((folder / "manifest.json").is_file, config.timeout_s, "the manifest of the main rank")
        return Pool.open(folder)


def _start(job: Embedding, folder: Path, log: Log) -> list[int]:
    """Numbers of the shards that are missing; on the main rank, before the first batch."""
    check_damage(job.source, job.config.max_bad_share)
    plan, known = json.loads(json.dumps(job.plan())), folder / "plan.json"
    if known.is_file():
        _check_same(folder, read_json(known)["plan"], plan)
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise RunDirectoryError(f"--out {folder} is not empty and holds no pool of attar. Choose a new folder.")
    if not known.is_file():
        check_names(job.source)
        write_json(known, {"plan": plan, "versions": versions()})
    log.say(f"  model    {describe(job.backbone)}")
    for place in named_places(job.config.data, job.source):
        log.say(f"  data     {place}")
    say_damage(log, job.source, folder / "bad_files.jsonl")
    remove_half_written(folder)
    missing = [number for number in range(len(job.shards)) if not (folder / shard_name(number)).is_file()]
    if missing:
        (folder / "manifest.json").unlink(missing_ok=True)
    done = len(job.shards) - len(missing)
    log.say(
        f"  shards   {len(job.shards):,} of up to {job.config.shard_size:,} images each, {done:,} done before;"
        " one that a stop cuts short is begun anew"
    )
    return missing


def _check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["model"]["fingerprint"] == now["model"]["fingerprint"]:  # the same weights, however they were loaded
        loaded = {name: now["model"][name] for name in _LOADED_BY}
    else:  # plans of before these settings were written down lack them
        loaded = {name: PoolModel.model_fields[name].default for name in _LOADED_BY} | before["model"]
    before = before | {"model": before["model"] | loaded}
    differ = flat_changes(before, now)
    differ = {
        key: values for key, values in differ.items() if "fingerprint" not in key
    } or differ  # the cause, if known
    refuse_changes(
        differ,
        f"--out {folder} holds vectors that were made otherwise",
        remedy="Choose a new --out, or give the settings and images of before.",
    )


def check_names(source: Source) -> None:
    """Two images of one name could not be told apart by whoever reads the pool; 8 bytes an image are held.

    Raises:
        DataError: If there are two.
    """
    names = track(map(source.name, range(len(source))), "looking at names", total=len(source), unit="images")
    hashes = np.fromiter(map(hash, names), np.int64, len(source))
    order = np.argsort(hashes, kind="stable")  # of equal ones the first row comes first
    alike = np.flatnonzero(np.diff(hashes[order]) == 0)
    for one, other in sorted(zip(order[alike].tolist(), order[alike + 1].tolist(), strict=True)):
        if source.name(one) == source.name(other):
            raise DataError(
                f"two images are called {source.name(one)} ({source.uri(one)} and {source.uri(other)}), and a pool"
                " tells images apart by their names. Leave weight and crops out of --data, and give places whose"
                " files differ by name or by their last folder."
            )


def _count_bad(job: Embedding, folder: Path, done: Iterator[tuple[int, int]]) -> None:
    """Let the shards be made until too many images are unreadable: those of this process alone tell it soon enough."""
    unreadable = 0
    for _, more in done:
        unreadable += more
        _check_bad(job, folder, unreadable)


def _check_bad(job: Embedding, folder: Path, unreadable: int) -> None:
    count, share = len(job.source), job.config.max_bad_share
    if unreadable > most_bad(count, share):
        shards = (folder / shard_name(number) for number in range(len(job.shards)))
        first = next((bad[0] for path in shards if path.is_file() and (bad := read_unreadable(path))), None)
        raise DataError(
            f"{unreadable:,} of {count:,} images cannot be read, more than --max-bad-share {share:g} allows."
            f" The first is {first.reason if first else 'not known'} Mend or remove them and choose a new --out, or"
            " raise it."
        )


def _finish(job: Embedding, folder: Path, made: list[int], log: Log) -> None:
    """Write the manifest when all shards are there."""
    paths = [folder / shard_name(number) for number in range(len(job.shards))]
    for path in paths:
        _wait_for(path.is_file, job.config.timeout_s, f"{path.name}, which another rank makes")
    if not (folder / "manifest.json").is_file():
        shards = list(track(map(describe_shard, paths), "hashing shards", total=len(paths), unit="shards"))
        unreadable = sum(shard.unreadable for shard in shards)
        _check_bad(job, folder, unreadable)
        _write_bad_files(folder / "bad_files.jsonl", paths)
        known = read_json(folder / "plan.json")
        manifest = Manifest.build(
            {name: value for name, value in known["plan"].items() if name in Manifest.model_fields}
            | {
                "versions": known["versions"],
                "unreadable": unreadable,
                "shards": [shard.model_dump() for shard in shards],
            }
        )
        write_json(folder / "manifest.json", manifest.model_dump(mode="json"))
    pool = Pool.open(folder)
    bad = pool.manifest.unreadable
    log.say(
        f"  pool     {len(pool):,} vectors of {pool.width} in {folder}"
        + (f", {bad:,} of them zeros: these images cannot be read (bad_files.jsonl)" if bad else "")
        + ("" if made else "  (all done before)")
    )


def _write_bad_files(path: Path, shards: list[Path]) -> None:
    """Damaged files, as they were written down at the start, then unreadable images in the order of the pool."""
    lines = [line for line in read_lines(path) if "sample" not in line]
    bad = [asdict(one) for shard in shards for one in read_unreadable(shard)]
    lines += [{"sample": one["sample"], "path": one["name"], "reason": one["reason"]} for one in bad]
    if lines:
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _wait_for(is_there: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_there():
        stop_if_requested("waiting for the other ranks")
        if time.monotonic() > deadline:
            raise LostRankError(
                f"rank {rank()} waited {timeout_s:g} s for {what}, and it did not come. All ranks must write to one"
                " file system; if they were only slow, raise timeout_s. The same command goes on."
            )
        time.sleep(_LOOKS_EVERY)
