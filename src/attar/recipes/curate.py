"""`attar curate`: a transfer set from a pool, by what the labelled images or the names of a task ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.config import CurateConfig
from attar.curation.choose import Questions, choose
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.screen import Guarded, Pixels, Screen
from attar.curation.vectors import embed_rows, guard_views
from attar.data.base import Source
from attar.data.labelled import given_parts
from attar.data.loader import default_workers
from attar.data.merged import MergedSource, Part
from attar.data.references import shown
from attar.data.sources import open_source
from attar.data.transfer_set import IMAGES, KIND
from attar.data.views import EvaluationView
from attar.errors import ConfigError, DataError, ModelReferenceError, RunDirectoryError, WeightsError
from attar.evaluation.zero_shot import text_classifier
from attar.models import Backbone, Preprocess, load_backbone, load_text_tower
from attar.models.two_towers import has_text_tower
from attar.recipes.curate_results import Asked, Curated, ends_of, examples, say_set, set_manifest, set_table
from attar.recipes.describe import describe
from attar.reports.curation import write_curation_page
from attar.utils.distributed import pick_device
from attar.utils.io import new_folder, read_json, write_json
from attar.utils.progress import Log
from attar.utils.signals import polite_stop

_SAME_MODEL = 0.99  # cosine of an image's vector now with the one in the pool: less is another model or preparation


@dataclass(frozen=True)
class CurateReport:
    """What curation leaves behind.

    Attributes:
        out: The set's folder, which is a place of images for every other verb.
        images: How many are in it.
        manifest: What `manifest.json` holds: `removed` says how many were left out, `guard` by what the copies among
            them were found.
    """

    out: Path
    images: int
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Barred:
    """What must not enter: images to keep apart from, and ids or addresses."""

    guarded: tuple[tuple[str, Source], ...]
    listed: frozenset[str]


def curate(config: CurateConfig) -> CurateReport:
    """Choose images of a pool for a task, and write them down as a set that opens wherever images are expected.

    Raises:
        UserError: If pool, queries, model or budget do not work out, or `out` holds something else.
        Interrupted: If SIGINT or SIGTERM came; nothing is written then.
    """
    with polite_stop(keeps=False):
        out = _free_folder(config)
        log, device = Log(), pick_device(config.device)
        pool = Pool.open(config.pool)
        source, index = pool.source(), PoolIndex(pool)
        places = len(pool.manifest.places)
        log.say(f"  pool     {len(pool):,} images of {places} place{'s'[: places > 1]}, {pool.width} numbers each")
        barred = barred_images(config)  # opened before anything is embedded: a wrong place is told at once
        eye = Eye(pool, source, config, device, log)
        asked = None if config.queries is None else _ask(config, eye)
        questions = _questions(config, pool, asked)
        screen, guarded = _screen(config, index, barred, asked, eye)
        choice = choose(
            index,
            questions,
            screen,
            config,
            members=len(asked.rows) if asked and config.include_queries else 0,
            ends=ends_of(source),
            device=device,
        )
        made = Curated(config, index, source, questions, asked, choice, screen, guarded)
        table = set_table(made)
        manifest = set_manifest(made, table)
        before = read_json(out / "manifest.json") if out.exists() and _is_set(out) else None
        with new_folder(out) as folder:
            pq.write_table(table, folder / IMAGES, compression="zstd", write_statistics=False)
            write_json(folder / "manifest.json", manifest)
            write_curation_page(folder / "report.html", manifest, examples(made))
        say_set(log, manifest, out, before)
        return CurateReport(out, table.num_rows, manifest)


def _free_folder(config: CurateConfig) -> Path:
    """The folder for the set, if nothing but an earlier set stands there."""
    out = Path(config.out).expanduser().resolve()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _is_set(out))):
        raise RunDirectoryError(f"--out {out} holds something that is no transfer set. Choose another folder.")
    return out


def _is_set(folder: Path) -> bool:
    manifest = folder / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("kind") == KIND


class Eye:
    """The pool's model, loaded when first asked, and only if it gives the pool's own images their vectors."""

    def __init__(self, pool: Pool, source: Source, config: CurateConfig, device: torch.device, log: Log) -> None:
        self.pool, self.source, self.config, self.device, self.log = pool, source, config, device, log
        self.workers = default_workers() if config.workers is None else config.workers
        view = pool.manifest.view
        self.view = EvaluationView(view.img_size, view.crop_pct)
        self._backbone: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        """On its device."""
        if self._backbone is None:
            self._backbone = _load(self.pool, self.config).to(self.device)
            self.log.say(f"  model    {describe(self._backbone)}")
            self._check()
        return self._backbone

    def embed(self, source: Source, rows: Sequence[int], *views: Any, name: str) -> tuple[Tensor, Tensor]:
        """As `embed_rows`."""
        return embed_rows(self.backbone, source, np.array(rows), *views, workers=self.workers, name=name)

    def _check(self) -> None:
        for first, block in self.pool.blocks():
            readable = block.any(dim=1).nonzero().flatten()
            if len(readable):
                row = first + int(readable[0])
                vector, _ = self.embed(self.source, [row], self.view, name="images of the pool")
                cosine = float((vector[0].double() * block[readable[0]].double()).sum())
                if cosine < _SAME_MODEL:
                    raise WeightsError(
                        f"{self.pool.manifest.model.reference} gives {self.source.name(row)} another vector than the"
                        f" pool has (cosine {cosine:.3f}): other weights, or another version. Give --weights the file"
                        " that made the pool, or embed the pool anew."
                    )
                return
        raise DataError(f"no image of the pool {self.pool.folder} could be read when it was made. Embed it anew.")


def _load(pool: Pool, config: CurateConfig) -> Backbone:
    made = pool.manifest.model
    backbone = load_backbone(
        made.reference,
        weights=_weights(pool, config),
        img_size=made.img_size,
        pos_embed=made.pos_embed,
        trust_torchscript=config.trust_torchscript,  # who runs this says whom they trust, no file does
        seed=made.seed,
    ).eval()
    if made.sha256 is not None and backbone.source.sha256 != made.sha256:
        raise WeightsError(
            f"the pool was made with {made.file} (sha256 {made.sha256[:12]}), {made.reference} now loads"
            f" {(backbone.source.sha256 or 'random weights')[:12]}. Give --weights that file."
        )
    backbone.normalise_with(Preprocess(made.mean, made.std))
    return backbone


def _weights(pool: Pool, config: CurateConfig) -> str:
    return config.weights or ("random" if pool.manifest.model.weights == "random" else "pretrained")


def _ask(config: CurateConfig, eye: Eye) -> Asked:
    """The labelled images that ask, embedded."""
    assert config.queries is not None
    reference = given_parts(config.queries).get("train", config.queries)
    source = open_source(reference)
    vectors, positions = eye.embed(source, range(len(source)), eye.view, name="queries")
    rows = tuple(positions.tolist())
    labels, names = source.labels() or (np.full(len(source), -1), [])
    questions = Questions(
        vectors, tuple(source.name(row) for row in rows), tuple(labels[list(rows)].tolist()), tuple(names)
    )
    return Asked(reference, source, questions, rows)


def _questions(config: CurateConfig, pool: Pool, asked: Asked | None) -> Questions:
    """What asks the pool: images, names or both.

    Raises:
        ConfigError: If names are needed and there are none.
        ModelReferenceError: If the pool's model has no text tower.
    """
    nobody = Questions(torch.empty(0, pool.width, dtype=torch.float16), (), (), ())
    if config.strategy == "random":
        return nobody
    images = asked.questions if asked else nobody
    if config.strategy not in ("text", "mixed"):
        return images
    names = config.class_names or images.class_names
    if not names:
        raise ConfigError(
            f"strategy {config.strategy} needs names: --class-names, or labelled images in a folder each."
        )
    texts = _encoded(config, pool, names)
    if config.strategy == "mixed" and config.mix == "sum":
        if not images.class_names or (config.class_names and config.class_names != images.class_names):
            raise ConfigError("mix sum joins each image with the name of its class: give labelled images alone.")
        joined = (1 - config.text_share) * images.vectors.float() + config.text_share * texts[list(images.classes)]
        return replace(images, vectors=F.normalize(joined, dim=1).half())
    known = images.class_names or names
    classes = tuple(known.index(name) if name in known else -1 for name in names)
    both = images if config.strategy == "mixed" else nobody
    return Questions(
        torch.cat([both.vectors, texts.half()]), (*both.names, *names), (*both.classes, *classes), known, len(names)
    )


def _encoded(config: CurateConfig, pool: Pool, names: Sequence[str]) -> Tensor:
    """(K, D) float32 of length 1 of class names in sentences."""
    file = Path(config.templates).expanduser()
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [config.templates]
    reference = pool.manifest.model.reference
    if not has_text_tower(reference):
        raise ModelReferenceError(
            f"strategy {config.strategy} compares the pool's images with words, and its model '{reference}' has no text"
            " tower. Embed the pool anew with one that has: attar embed --model open_clip:NAME, a directory of"
            " open_clip, or hf:DIR of a clip or siglip."
        )
    tower = load_text_tower(
        reference,
        weights=_weights(pool, config),
        trust_torchscript=config.trust_torchscript,
        seed=pool.manifest.model.seed,
    )
    plain = [name.replace("_", " ") for name in names]
    return text_classifier(tower.encode, plain, [line for line in lines if line and not line.startswith("#")])


def barred_images(config: CurateConfig) -> _Barred:
    """What labelled images and `exclude` name.

    Raises:
        DataError: If a place holds no images.
    """
    parts = {} if config.queries is None else given_parts(config.queries)
    places = [place for part, place in parts.items() if part != "train" and "train" in parts]
    lists = [place for place in config.exclude if Path(place).expanduser().is_file() and _is_text(place)]
    places += [place for place in config.exclude if place not in lists]
    listed = frozenset(line for place in lists for line in _lines(place))
    return _Barred(tuple((place, open_source(place)) for place in places), listed)


def _screen(
    config: CurateConfig, index: PoolIndex, barred: _Barred, asked: Asked | None, eye: Eye
) -> tuple[Screen, tuple[Mapping[str, Any], ...]]:
    """Who judges candidates, and what the guard watches over."""
    excluded = index.places_of(barred.listed) if barred.listed else set()
    if barred.listed and not excluded:
        eye.log.say(
            f"  exclude  none of {len(barred.listed):,} listed names is in the pool,"
            f" which has names such as {index.pool.ids([0])[0]}"
        )
    guarded: Guarded | None = None
    guards: tuple[Mapping[str, Any], ...] = ()
    if config.leak_threshold is not None and barred.guarded:
        guarded, guards = _guarded(config, barred.guarded, config.leak_threshold, eye)
    members = asked.questions.vectors if asked and config.include_queries else None
    return Screen(index, guarded, excluded, members, config.duplicate_threshold), guards


def _guarded(
    config: CurateConfig, places: tuple[tuple[str, Source], ...], threshold: float, eye: Eye
) -> tuple[Guarded, tuple[Mapping[str, Any], ...]]:
    """The guarded images as the pool's model sees them, and where they lie, for the record."""
    vectors, rows, guards = [], [], []
    merged = MergedSource([Part(source) for _, source in places])
    first = 0  # row of the merged source with which a place begins
    for place, source in places:
        found, positions = eye.embed(source, range(len(source)), *guard_views(eye.view), name="guarded images")
        vectors.append(found)
        rows.append(positions.numpy() + first)
        first += len(source)
        unreadable = len(source) - len(np.unique(positions))
        guards.append(
            {"place": shown(place), "images": len(source), "unreadable": unreadable, "fingerprint": source.fingerprint}
        )
    shows = np.concatenate(rows)
    names = tuple(merged.uri(row) for row in shows.tolist())
    pixels = None
    if config.suspect_threshold is not None and config.suspect_threshold < threshold:
        pixels = Pixels(config.suspect_threshold, eye.source, merged, shows, eye.workers)
    return Guarded(torch.cat(vectors), names, threshold, pixels), tuple(guards)


def _is_text(place: str) -> bool:
    return Path(place).suffix.lower() in (".txt", ".csv", ".lst", "")


def _lines(place: str) -> list[str]:
    text = Path(place).expanduser().read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
