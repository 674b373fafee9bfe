"""`attar curate`: a transfer set from a pool, by what the labelled images or the names of a task ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from attar._version import __version__
from attar.config import CurateConfig
from attar.curation.choose import Choice, Questions, choose
from attar.curation.index import PoolIndex
from attar.curation.pool import Pool
from attar.curation.screen import Guarded, Screen
from attar.curation.statistics import coverage, fill, histogram
from attar.curation.vectors import embed_rows, guard_views
from attar.data.base import Source
from attar.data.labelled import given_parts
from attar.data.loader import default_workers
from attar.data.merged import MergedSource
from attar.data.references import lasting, shown
from attar.data.sources import named_places, open_source
from attar.data.transfer_set import IMAGES, KIND
from attar.data.views import EvaluationView
from attar.errors import ConfigError, DataError, RunDirectoryError, WeightsError
from attar.evaluation.zero_shot import text_classifier
from attar.models import Backbone, Preprocess, load_backbone, load_text_tower
from attar.recipes.describe import describe
from attar.reports.curation import Fetched, Query, write_curation_page
from attar.utils.distributed import pick_device
from attar.utils.io import new_folder, read_json, sha256_text, write_json
from attar.utils.progress import Log
from attar.utils.run_directory import flat_changes
from attar.utils.signals import polite_stop

_NOT_OF_THE_SET = {"out", "device", "workers", "pool", "queries", "weights", "trust_torchscript"}
_SAME_MODEL = 0.99  # cosine of an image's vector now with the one in the pool: less is another model or preparation
_SHOWN_QUERIES, _SHOWN_IMAGES, _SHOWN_LEAKS = 12, 6, 8


@dataclass(frozen=True)
class CurateReport:
    """What curation leaves behind.

    Attributes:
        out: The set's folder, which is a place of images for every other verb.
        images: How many are in it.
        manifest: What `manifest.json` holds.
    """

    out: Path
    images: int
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Asked:
    """The labelled images."""

    reference: str
    source: Source
    questions: Questions
    rows: tuple[int, ...]


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
    with polite_stop():
        out = _free_folder(config)
        log, device = Log(), pick_device(config.device)
        pool = Pool.open(config.pool)
        source, index = pool.source(), PoolIndex(pool)
        places = len(pool.manifest.places)
        log.say(f"  pool     {len(pool):,} images of {places} place{'s'[: places > 1]}, {pool.width} numbers each")
        barred = _barred(config)  # opened before anything is embedded: a wrong place is told at once
        eye = _Eye(pool, source, config, device, log)
        asked = None if config.queries is None else _ask(config, eye)
        questions = _questions(config, pool, asked)
        screen, guards = _screen(config, index, barred, asked, eye)
        ends = np.cumsum(
            [len(part.source) for part in source.parts] if isinstance(source, MergedSource) else [len(source)]
        )
        choice = choose(
            index,
            questions,
            screen,
            config,
            members=len(asked.rows) if asked and config.include_queries else 0,
            ends=ends.tolist(),
            device=device,
        )
        table = _table(choice, index, questions, asked if config.include_queries else None)
        manifest = _manifest(config, pool, source, asked, questions, choice, screen, guards, ends, index, table)
        before = read_json(out / "manifest.json") if out.exists() and _is_set(out) else None
        with new_folder(out) as folder:
            pq.write_table(table, folder / IMAGES, compression="zstd", write_statistics=False)
            write_json(folder / "manifest.json", manifest)
            write_curation_page(
                folder / "report.html", manifest, _examples(choice, index, source, questions, asked, screen)
            )
        _say_end(log, manifest, out, before)
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


class _Eye:
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


def _ask(config: CurateConfig, eye: _Eye) -> _Asked:
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
    return _Asked(reference, source, questions, rows)


def _questions(config: CurateConfig, pool: Pool, asked: _Asked | None) -> Questions:
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
    tower = load_text_tower(
        pool.manifest.model.reference,
        weights=_weights(pool, config),
        trust_torchscript=config.trust_torchscript,
        seed=pool.manifest.model.seed,
    )
    plain = [name.replace("_", " ") for name in names]
    return text_classifier(tower.encode, plain, [line for line in lines if line and not line.startswith("#")])


def _barred(config: CurateConfig) -> _Barred:
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
    config: CurateConfig, index: PoolIndex, barred: _Barred, asked: _Asked | None, eye: _Eye
) -> tuple[Screen, list[dict[str, Any]]]:
    """Who judges candidates, and what the guard watches over."""
    excluded = index.places_of(barred.listed) if barred.listed else set()
    if barred.listed and not excluded:
        eye.log.say(
            f"  exclude  none of {len(barred.listed):,} listed names is in the pool,"
            f" which has names such as {index.pool.ids([0])[0]}"
        )
    guarded, guards = None, []
    if config.leak_threshold is not None and barred.guarded:
        vectors, names = [], []
        for place, source in barred.guarded:
            guards.append({"place": shown(place), "images": len(source), "fingerprint": source.fingerprint})
            found, positions = eye.embed(source, range(len(source)), *guard_views(eye.view), name="guarded images")
            vectors.append(found)
            names += [source.uri(row) for row in positions.tolist()]
        guarded = Guarded(torch.cat(vectors), tuple(names), config.leak_threshold)
    members = asked.questions.vectors if asked and config.include_queries else None
    return Screen(index, guarded, excluded, members, config.duplicate_threshold), guards


def _is_text(place: str) -> bool:
    return Path(place).suffix.lower() in (".txt", ".csv", ".lst", "")


def _lines(place: str) -> list[str]:
    text = Path(place).expanduser().read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _table(choice: Choice, index: PoolIndex, questions: Questions, included: _Asked | None) -> Any:
    """The set's rows: what was fetched, in order, then the queries that are part of it."""
    rows = index.rows([pick.item for pick in choice.picks])
    asks = len(questions) > 0
    fetched = {
        "part": ["pool"] * len(rows),
        "row": rows.tolist(),
        "id": index.pool.ids(rows),
        "uri": index.pool.uris(rows),
        "query": [questions.names[pick.query] if asks else None for pick in choice.picks],
        "class": [questions.class_of(pick.query) if asks else None for pick in choice.picks],
        "similarity": [pick.similarity if asks else None for pick in choice.picks],
        "rank": [pick.rank for pick in choice.picks],
        "round": [pick.round for pick in choice.picks],
    }
    own: dict[str, list[Any]] = {name: [] for name in fetched}
    for row, name in zip(included.rows, included.questions.names, strict=True) if included else ():
        values = {"part": "queries", "row": row, "id": name, "uri": included.source.uri(row)}  # type: ignore[union-attr]
        for column, cells in own.items():
            cells.append(values.get(column))
    kinds = dict.fromkeys(fetched, pa.string()) | {
        "row": pa.int64(),
        "similarity": pa.float64(),
        "rank": pa.int32(),
        "round": pa.int32(),
    }
    return pa.table({name: pa.array(fetched[name] + own[name], kinds[name]) for name in fetched})


def _manifest(
    config: CurateConfig,
    pool: Pool,
    source: Source,
    asked: _Asked | None,
    questions: Questions,
    choice: Choice,
    screen: Screen,
    guards: list[dict[str, Any]],
    ends: Any,
    index: PoolIndex,
    table: Any,
) -> dict[str, Any]:
    """All that says what the set is, and nothing that changes when the same is done again."""
    settings = config.model_dump(mode="json", exclude=_NOT_OF_THE_SET)
    places: list[dict[str, Any]] = [
        {"part": "pool", "references": list(pool.manifest.places), "fingerprint": pool.manifest.fingerprint}
    ]
    if asked:
        entry = {"part": "queries", "references": [lasting(asked.reference)], "fingerprint": asked.source.fingerprint}
        places.append(entry)
    rows = index.rows([pick.item for pick in choice.picks])
    counts = Counter(np.searchsorted(ends, rows, side="right").tolist())
    return {
        "kind": KIND,
        "format": 1,
        "made_by": f"attar {__version__}",
        "images": table.num_rows,
        "fetched": len(choice.picks),
        "wanted": choice.plan.wanted,
        "shortfall": choice.plan.wanted - len(choice.picks),
        "lists_cut": choice.is_cut,
        "settings": settings,
        "pool": {"images": len(pool), "fingerprint": pool.fingerprint, "source": pool.manifest.fingerprint},
        "model": pool.manifest.model.model_dump(mode="json"),
        "queries": {
            "count": len(questions),
            "texts": questions.texts,
            "vectors": sha256_text(questions.vectors.numpy().tobytes().hex()),
        },
        "places": places,
        "guarded": guards,
        "removed": {
            "leaks": len(screen.leaks),
            "duplicates": choice.duplicates,
            "copies of queries": len(screen.copies_of_members),
            "excluded": len(screen.excluded),
            "judged": choice.judged,
        },
        "leaked": [
            {"id": index.pool.ids(index.rows([item]))[0], "similarity": round(value, 4), "like": like}
            for item, (value, like) in sorted(screen.leaks.items(), key=lambda entry: (-entry[1][0], entry[0]))
        ],
        "fill": fill(choice, questions),
        "similarity": histogram([pick.similarity for pick in choice.picks]),
        "coverage": coverage(choice, questions, len(pool)),
        "sources": [
            {"place": place.name, "images": place.images, "fetched": counts.get(number, 0)}
            for number, place in enumerate(named_places(pool.manifest.places, source))
        ],
        "listed": choice.listed,
    }


def _examples(
    choice: Choice, index: PoolIndex, source: Source, questions: Questions, asked: _Asked | None, screen: Screen
) -> dict[str, Any]:
    """Images for the page: a few queries with what they fetched, and leaks."""
    groups: dict[int, list[Fetched]] = {}
    for pick in choice.picks:
        own = groups.setdefault(pick.query, [])
        if len(own) < _SHOWN_IMAGES:
            row = int(index.rows([pick.item])[0])
            own.append(Fetched(source, row, pick.similarity))
    shown_queries = np.unique(np.linspace(0, max(0, len(groups) - 1), _SHOWN_QUERIES).round().astype(int))
    order = sorted(groups)
    images = len(questions) - questions.texts
    queries = [
        Query(
            name=questions.names[query] if len(questions) else "random",
            group=questions.class_of(query) if len(questions) else None,
            image=(asked.source, asked.rows[query]) if asked and query < images else None,
            fetched=tuple(groups[query]),
        )
        for query in (order[number] for number in shown_queries if number < len(order))
    ]
    leaks = sorted(screen.leaks.items(), key=lambda entry: (-entry[1][0], entry[0]))
    if len(leaks) > _SHOWN_LEAKS:  # those next to the threshold tell whether it is right
        leaks = leaks[: _SHOWN_LEAKS // 2] + leaks[-_SHOWN_LEAKS // 2 :]
    return {
        "queries": queries,
        "leaks": [Fetched(source, int(index.rows([item])[0]), value, like) for item, (value, like) in leaks],
    }


def _say_end(log: Log, manifest: Mapping[str, Any], out: Path, before: Mapping[str, Any] | None) -> None:
    """Lines for people; `before` is the manifest of the set whose place this one takes."""
    removed, settings = manifest["removed"], manifest["settings"]
    log.say(
        f"  set      {manifest['images']:,} images, {manifest['fetched']:,} of them from the pool"
        f" ({removed['judged']:,} looked at)"
    )
    log.say(
        f"  left out {removed['leaks']:,} copies of guarded images, {removed['duplicates']:,} near-duplicates,"
        f" {removed['copies of queries']:,} copies of queries, {removed['excluded']:,} on the list"
    )
    if settings["leak_threshold"] is None:
        log.say("           --leak-threshold is none: nothing was guarded")
    elif not manifest["guarded"]:
        log.say("           no val or test images are known: nothing was guarded. Name them with --exclude DIR.")
    if manifest["shortfall"]:
        log.say(f"           {manifest['shortfall']:,} fewer than wanted: {_why_fewer(manifest)}")
    over = settings["budget"] - manifest["images"] - manifest["shortfall"]
    if over > 0:
        log.say(f"           {over:,} of --budget {settings['budget']:,} left over: all that ask get equally many")
    log.say(f"  written  {out}: {IMAGES}, manifest.json, report.html")
    if before:
        changes = flat_changes(_identity(before), _identity(manifest))
        told = "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in list(changes.items())[:6])
        log.say(f"           in place of an earlier set: {told or 'the same'}")


def _why_fewer(manifest: Mapping[str, Any]) -> str:
    if manifest["lists_cut"]:
        return (
            f"lists of candidates end at {manifest['listed']:,} for each of {manifest['queries']['count']:,} queries,"
            " and the pool may have more. Ask with fewer queries."
        )
    return "the pool has no more that may enter"


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What tells two sets apart, in the words of their manifests."""
    return {
        **manifest["settings"],
        "pool": manifest["pool"]["fingerprint"][:12],
        "queries": manifest["queries"]["vectors"][:12],
    }
