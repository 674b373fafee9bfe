"""What `attar curate` writes and says of a set: its table, what it is, examples for the page, the closing lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from attar._version import __version__
from attar.config import CurateConfig
from attar.curation.choose import Choice, Questions
from attar.curation.index import PoolIndex
from attar.curation.screen import FoundBy, Leak, Screen
from attar.curation.statistics import coverage, fill, histogram
from attar.data.base import Source
from attar.data.merged import MergedSource
from attar.data.references import lasting
from attar.data.sources import named_places
from attar.data.transfer_set import IMAGES, KIND
from attar.reports.curation import Fetched, Query
from attar.utils.io import sha256_text
from attar.utils.progress import Log
from attar.utils.run_directory import flat_changes, told_changes

_NOT_OF_THE_SET = {"out", "device", "workers", "pool", "queries", "weights", "trust_torchscript"}
_SHOWN_QUERIES, _SHOWN_IMAGES, _SHOWN_LEAKS = 12, 6, 8


@dataclass(frozen=True)
class Asked:
    """The labelled images that ask: where they lie, what they ask, and their rows there."""

    reference: str
    source: Source
    questions: Questions
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Curated:
    """A choice, and all that it came from.

    Attributes:
        config: Of the command.
        index: Of the pool.
        source: The pool's images.
        questions: What asked.
        asked: The labelled images among it; None where names alone ask, or nobody.
        choice: What was chosen.
        screen: Who judged the candidates.
        guarded: Places whose images must not enter, for the record.
    """

    config: CurateConfig
    index: PoolIndex
    source: Source
    questions: Questions
    asked: Asked | None
    choice: Choice
    screen: Screen
    guarded: tuple[Mapping[str, Any], ...]

    @property
    def included(self) -> Asked | None:
        """The labelled images, where they are part of the set."""
        return self.asked if self.config.include_queries else None

    @property
    def leaks(self) -> list[tuple[int, Leak]]:
        """(item, why it is taken for a copy), the most similar ones first."""
        return sorted(self.screen.leaks.items(), key=lambda entry: (-entry[1].similarity, entry[0]))


def ends_of(source: Source) -> list[int]:
    """For each place of the pool the row behind its last one."""
    parts = [part.source for part in source.parts] if isinstance(source, MergedSource) else [source]
    return list(accumulate(map(len, parts)))


def set_table(made: Curated) -> Any:
    """The set's rows: what was fetched, in order, then the queries that are part of it."""
    choice, index, questions, included = made.choice, made.index, made.questions, made.included
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


def set_manifest(made: Curated, table: Any) -> dict[str, Any]:
    """All that says what the set is, and nothing that changes when the same is done again."""
    choice, questions, pool = made.choice, made.questions, made.index.pool
    return {
        "kind": KIND,
        "format": 1,
        "made_by": f"attar {__version__}",
        "images": table.num_rows,
        "fetched": len(choice.picks),
        "wanted": choice.plan.wanted,
        "shortfall": choice.plan.wanted - len(choice.picks),
        "lists_cut": choice.is_cut,
        "settings": made.config.model_dump(mode="json", exclude=_NOT_OF_THE_SET),
        "pool": {"images": len(pool), "fingerprint": pool.fingerprint, "source": pool.manifest.fingerprint},
        "model": pool.manifest.model.model_dump(mode="json"),
        "queries": {
            "count": len(questions),
            "texts": questions.texts,
            "vectors": sha256_text(questions.vectors.numpy().tobytes().hex()),
        },
        "places": _places(made),
        "guarded": list(made.guarded),
        "removed": _removed(made),
        "guard": _guard(made.screen),
        "leaked": [
            {"id": pool.ids(made.index.rows([item]))[0], **asdict(leak), "similarity": round(leak.similarity, 4)}
            for item, leak in made.leaks
        ],
        "fill": fill(choice, questions),
        "similarity": histogram([pick.similarity for pick in choice.picks]),
        "coverage": coverage(choice, questions, len(pool)),
        "sources": _sources(made),
        "listed": choice.listed,
    }


def _places(made: Curated) -> list[dict[str, Any]]:
    """Where the images of each part of the set lie."""
    pool, asked = made.index.pool.manifest, made.asked
    found = [{"part": "pool", "references": list(pool.places), "fingerprint": pool.fingerprint}]
    if asked:
        place = {"part": "queries", "references": [lasting(asked.reference)], "fingerprint": asked.source.fingerprint}
        found.append(place)
    return found


def _removed(made: Curated) -> dict[str, int]:
    """How many candidates were left out, and why."""
    return {
        "leaks": len(made.screen.leaks),
        "duplicates": made.choice.duplicates,
        "copies of queries": len(made.screen.copies_of_members),
        "excluded": len(made.screen.excluded),
        "judged": made.choice.judged,
    }


def _guard(screen: Screen) -> dict[str, int]:
    """By what copies of guarded images were found, and how many images were compared by pixels, in how many pairs."""
    counts = Counter(leak.found_by for leak in screen.leaks.values())
    found = {f"by {way}": counts[way] for way in get_args(FoundBy)}
    return found | {"suspects": screen.suspects, "pairs": screen.pairs}


def _sources(made: Curated) -> list[dict[str, Any]]:
    """How much each place of the pool has given."""
    rows = made.index.rows([pick.item for pick in made.choice.picks])
    counts = Counter(np.searchsorted(ends_of(made.source), rows, side="right").tolist())
    return [
        {"place": place.name, "images": place.images, "fetched": counts.get(number, 0)}
        for number, place in enumerate(named_places(made.index.pool.manifest.places, made.source))
    ]


def examples(made: Curated) -> dict[str, Any]:
    """Images for the page: a few queries with what they fetched, and leaks."""
    index, source, questions, asked = made.index, made.source, made.questions, made.asked
    groups: dict[int, list[Fetched]] = {}
    for pick in made.choice.picks:
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
    leaks = []
    for way in get_args(FoundBy):
        found = [entry for entry in made.leaks if entry[1].found_by == way]
        if len(found) > _SHOWN_LEAKS:  # those next to the threshold tell whether it is right
            found = found[: _SHOWN_LEAKS // 2] + found[-_SHOWN_LEAKS // 2 :]
        leaks += found
    return {
        "queries": queries,
        "shown_leaks": _SHOWN_LEAKS // 2,
        "leaks": [
            Fetched(source, int(index.rows([item])[0]), leak.similarity, leak.like, leak.found_by)
            for item, leak in leaks
        ],
    }


def say_set(log: Log, manifest: Mapping[str, Any], out: Path, before: Mapping[str, Any] | None) -> None:
    """Lines for people; `before` is the manifest of the set whose place this one takes."""
    removed, settings = manifest["removed"], manifest["settings"]
    log.say(
        f"  set      {manifest['images']:,} images, {manifest['fetched']:,} of them from the pool"
        f" ({removed['judged']:,} looked at)"
    )
    log.say(
        f"  left out {_of(removed['leaks'], 'copy', 'copies')} of guarded images,"
        f" {_of(removed['duplicates'], 'near-duplicate', 'near-duplicates')},"
        f" {_of(removed['copies of queries'], 'copy', 'copies')} of queries, {removed['excluded']:,} on the list"
    )
    guard = manifest["guard"]
    if guard["suspects"]:
        log.say(
            f"           of the copies {guard['by similarity']:,} were found by similarity, {guard['by pixels']:,} by"
            f" pixels among {guard['suspects']:,} suspects"
        )
    if guard["by unreadable"]:
        log.say(f"           {guard['by unreadable']:,} suspects cannot be read any more: counted as copies")
    if unreadable := sum(place["unreadable"] for place in manifest["guarded"]):
        log.say(f"           {unreadable:,} guarded images cannot be read: nothing is kept apart from them")
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
        log.say(f"           in place of an earlier set: {told_changes(changes) or 'the same'}")


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


def _of(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"
