"""`attar data pack`: images scaled down once, shard by shard, so that no run decodes the large ones again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.config import PackConfig
from attar.data.base import Labels, Source, lost_images
from attar.data.files import File, is_url, local_path, without_credentials
from attar.data.loader import default_workers
from attar.data.pack import PACK_FILE, PackFile, Packing, packed_shards, read_pack_file, shard_name
from attar.data.references import lasting, split_reference
from attar.data.shards import Shards
from attar.data.sources import open_source
from attar.data.tar import shard_rows
from attar.errors import ConfigError, DataError, DecodeError, RunDirectoryError
from attar.recipes.assembly import check_damage
from attar.recipes.describe import say_damage
from attar.recipes.planning.parts import free_at, size_in_words
from attar.train.callbacks import most_bad
from attar.utils.distributed import launched_ranks
from attar.utils.io import append_line, read_lines, remove_half_written, write_json, write_text
from attar.utils.progress import Log, track
from attar.utils.run_directory import flat_changes, held_directory, refuse_changes
from attar.utils.signals import polite_stop

_BATCH = 32  # images that a worker packs at a time
_SAMPLE = 48  # images that the size of all is guessed from


@dataclass(frozen=True)
class PackReport:
    """What packing leaves behind.

    Attributes:
        out: The folder: a place that any verb's `--data` takes.
        images: How many are in its shards.
        unreadable: How many could not be read, and are not.
        bytes: Of the shards.
    """

    out: Path
    images: int
    unreadable: int
    bytes: int


@dataclass(frozen=True)
class _Job:
    """Images, how they are packed, and where."""

    config: PackConfig
    source: Source
    folder: Path

    @property
    def packing(self) -> Packing:
        return Packing(self.config.short_side, self.config.quality)

    @property
    def shards(self) -> Shards:
        return Shards(len(self.source), self.config.shard_size, _BATCH)

    @property
    def bad_files(self) -> Path:
        return self.folder / "bad_files.jsonl"

    def plan(self) -> dict[str, Any]:
        """What each shard depends on."""
        settings = self.config.model_dump(mode="json", include={"short_side", "quality", "shard_size"})
        places = [lasting(reference) for reference in self.config.data]
        return {"places": places, "fingerprint": self.source.fingerprint, "count": len(self.source), **settings}


def pack(config: PackConfig) -> PackReport:
    """Pack images into a folder of tar shards, or go on with one; shards that are there are not made again.

    Raises:
        UserError: If images or folder do not work out, or the disk has no room for the shards.
        Interrupted: If SIGINT or SIGTERM came; the same command goes on.

    Example:
        >>> import attar, tempfile
        >>> config = attar.PackConfig(data="playground:0?n=20", out=tempfile.mkdtemp(), short_side=32, workers=0)
        >>> attar.pack(config).images
        20
    """
    if launched_ranks() > 1:
        raise ConfigError(
            f"{launched_ranks()} ranks were launched, and images are packed by one process and its --workers. On"
            " several machines give each a part of the images and an --out of its own."
        )
    with polite_stop():
        _check_place(config)
        source = open_source(config.data, reindex=config.reindex)
        check_damage(source, config.max_bad_share)
        classes = source.labels()
        with held_directory(Path(config.out)) as folder:
            job = _Job(config, source, folder)
            log, missing = Log(folder / "log.txt"), _start(job, classes[1] if classes else None)
            done = "all done before"
            if missing:
                _say_start(job, log, missing, f"of {len(classes[1]):,} classes" if classes else "without classes")
                done = _make(job, missing, classes[0] if classes else None)
            return _finish(job, log, done)


def _check_place(config: PackConfig) -> None:
    """Refuse an --out that is no folder here, or one that would become a part of the images.

    Raises:
        ConfigError: With the place that it lies in.
    """
    if is_url(config.out):
        raise ConfigError(
            f"--out {without_credentials(config.out)} is a URL. Pack into a folder here, and copy it there."
        )
    out = local_path(config.out)
    for reference in config.data:
        place = split_reference(reference)[0]
        if not is_url(place) and not place.startswith("playground") and local_path(place) in (out, *out.parents):
            raise ConfigError(f"--out {config.out} lies in --data {place}, whose images it would join. Choose another.")


def _start(job: _Job, class_names: Sequence[str] | None) -> list[int]:
    """Numbers of the shards that are missing."""
    if (job.folder / PACK_FILE).is_file():
        changes = flat_changes(read_pack_file(job.folder).plan, json.loads(json.dumps(job.plan())))
        causes = {key: values for key, values in changes.items() if key != "fingerprint"} or changes
        if any(job.folder.glob("*.tar")):  # else nothing is lost
            remedy = (
                "Choose a new --out, or give the settings and images of before. New images can be packed apart: --data"
                " takes several places."
            )
            refuse_changes(causes, f"--out {job.folder} holds other images, or packed otherwise", remedy=remedy)
    elif any(not entry.name.startswith(".") for entry in job.folder.iterdir()):
        raise RunDirectoryError(f"--out {job.folder} is not empty and holds no packed images. Choose a new folder.")
    remove_half_written(job.folder)
    missing = [number for number in range(len(job.shards)) if not (job.folder / shard_name(number)).is_file()]
    if missing:  # without a number of images: nobody shall take a part for the whole
        names = None if class_names is None else tuple(class_names)
        about = PackFile(plan=job.plan(), class_names=names, shards=len(job.shards))
        write_json(job.folder / PACK_FILE, about.model_dump(mode="json"))
    return missing


def _say_start(job: _Job, log: Log, missing: Sequence[int], classes: str) -> None:
    """What is to be done and how much room it takes; refused where there is not so much.

    Raises:
        RunDirectoryError: If the disk is too small.
    """
    images = sum(len(job.shards.rows(number)) for number in missing)
    needed, free = round(_bytes_of_one(job) * images), free_at(str(job.folder))
    say_damage(log, job.source, job.bad_files)
    before = len(job.source) - images
    log.say(
        f"  pack     {images:,} images {classes}, short side {job.config.short_side} px at most, into"
        f" {len(missing):,} {'shard' if len(missing) == 1 else 'shards'}: about {size_in_words(needed)},"
        f" {size_in_words(free)} are free{f' ({before:,} images were done before)' if before else ''}"
    )
    if needed > free:
        raise RunDirectoryError(
            f"the packed images will take about {size_in_words(needed)}, and {size_in_words(free)} are free in"
            f" {job.folder}. Try a smaller --short-side, or an --out on another disk."
        )


def _bytes_of_one(job: _Job) -> float:
    """Of an image in a shard, guessed from some; a member takes its header and whole blocks of 512."""
    rows = np.unique(np.linspace(0, len(job.source) - 1, min(_SAMPLE, len(job.source))).astype(int))
    found = []
    for row in track(rows.tolist(), "looking at images", total=len(rows), unit="images"):
        try:
            data, _ = job.packing(job.source.read(row), name=job.source.name(row))
        except DecodeError:
            continue
        found.append(len(data) + 1.5 * 512 + 1024)
    return float(np.mean(found)) if found else 0.0


def _make(job: _Job, missing: Sequence[int], labels: Labels | None) -> str:
    """Write the missing shards, and what cannot be read into `bad_files.jsonl`; say what was done, in words.

    Raises:
        DataError: If too many images cannot be read.
    """
    workers = default_workers() if job.config.workers is None else job.config.workers
    made = packed_shards(job.source, labels, job.packing, job.shards, missing, job.folder, workers=workers)
    images = sum(len(job.shards.rows(number)) for number in missing)
    unreadable, scaled, copied, before, after = _forget(job, missing), 0, 0, 0, 0
    for image in track(made, "packing", total=images, unit="images"):
        if image.bad is None:
            scaled, copied = scaled + (not image.is_copy), copied + image.is_copy
            before, after = before + image.bytes_before, after + len(image.data)
            continue
        append_line(job.bad_files, {"sample": image.row, "path": image.name, "reason": image.bad.reason})
        unreadable += 1
        _check_bad(job, unreadable, image.bad.reason)
    return (
        f"{scaled:,} encoded anew, {copied:,} copied as they are: {size_in_words(before)} of images are"
        f" {size_in_words(after)} now"
    )


def _forget(job: _Job, missing: Sequence[int]) -> int:
    """How many images cannot be read; what is written down of shards that are to be made is forgotten first."""
    lines, again = read_lines(job.bad_files), set(missing)
    kept = [line for line in lines if "sample" not in line or line["sample"] // job.shards.size not in again]
    if kept != lines:
        write_text(job.bad_files, "".join(json.dumps(line) + "\n" for line in kept))
    return sum("sample" in line for line in kept)


def _check_bad(job: _Job, unreadable: int, reason: str) -> None:
    lost = lost_images(job.source)
    limit = most_bad(len(job.source) + lost, job.config.max_bad_share)
    if unreadable + lost > limit:
        more = f" and about {lost:,} are lost in damaged shards" if lost else ""
        raise DataError(
            f"{unreadable:,} of {len(job.source):,} images cannot be read{more}, more than the limit of {limit:,} (see"
            f" {job.bad_files}). The last is {reason} Mend or remove them and choose a new --out, or raise"
            " --max-bad-share."
        )


def _finish(job: _Job, log: Log, done: str) -> PackReport:
    """Count what is in the shards, which leaves their index in the cache for the first run, and write it down."""
    paths = [job.folder / shard_name(number) for number in range(len(job.shards))]
    rows, lacking = 0, ""
    for number, path in enumerate(track(paths, "indexing shards", total=len(paths), unit="shards")):
        found, problems = shard_rows(File(str(path)))
        if problems:
            raise DataError(f"{problems[0].reason} Remove that file, and give the same command again.")
        rows += found.num_rows
        if found.num_rows < len(job.shards.rows(number)):
            lacking = lacking or path.name
    unreadable, size = len(job.source) - rows, sum(path.stat().st_size for path in paths)
    if unreadable:
        _check_bad(job, unreadable, f"in {job.bad_files.name}.")
    counted = {"images": rows, "bytes": size, "unreadable": unreadable}
    about = read_pack_file(job.folder).model_copy(update=counted)
    write_json(job.folder / PACK_FILE, about.model_dump(mode="json"))
    log.say(f"  packed   {rows:,} images, {size_in_words(size)} ({done})")
    if unreadable:
        log.say(
            f"           {unreadable:,} more could not be read and are left out (bad_files.jsonl). To try them again"
            f" remove their shard, such as {lacking}, and give the same command."
        )
    log.say(f"           Take them with --data {job.folder}")
    return PackReport(job.folder, rows, unreadable, size)
