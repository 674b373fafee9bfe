"""From lines of text to a clean corpus: every sentence once, in an order that the texts alone decide.

Sentences are spread over files by a hash of their text, and each of these files is sorted and freed of duplicates by
itself. So memory is a small share of the corpus, texts and not hashes are compared, and a shard holds the same
sentences, in the same order, however the corpus lies in files.

    corpus.json                what it is of, what was left out, rows and SHA-256 of each shard
    shard-00000.parquet ...    text, source (file), line (from 1; the first of equal sentences, by file and line)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from attar.curation.pool import shard_name
from attar.errors import DataError
from attar.utils.io import read_json, sha256_file, write_json
from attar.utils.progress import track

_SPREAD = 128  # files that a corpus is spread over: memory is that share of it
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphen, marks of no width
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WORD = re.compile(r"[^\W_]+")
_SCHEMA = pa.schema([("text", pa.string()), ("source", pa.dictionary(pa.int32(), pa.string())), ("line", pa.int64())])


def normalise(text: str, *, lowercase: bool = True) -> str:
    """A sentence in Unicode's NFKC form, without control characters, its words parted by single spaces.

    Example:
        >>> normalise("  A\u00a0ﬁne\tDay ")
        'a fine day'
    """
    text = unicodedata.normalize("NFKC", text).translate(_INVISIBLE)
    if lowercase:
        text = unicodedata.normalize("NFKC", text.lower())
    return " ".join(_CONTROL.sub(" ", text).split())


class Phrases:
    """Whether a text contains one of many phrases: whole words in a row, whatever their case and what parts them.

    Plurals are other words, and a script without spaces has no words to compare.

    Example:
        >>> "A golden-retriever!" in Phrases(["golden retriever"]), "retrievers" in Phrases(["retriever"])
        (True, False)
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        split = [words for phrase in phrases if (words := _words(phrase))]
        self._known = frozenset(map(" ".join, split))
        self._lengths = sorted(set(map(len, split)))

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, text: object) -> bool:
        words = _words(str(text))
        return any(
            " ".join(words[start : start + length]) in self._known
            for length in self._lengths
            for start in range(len(words) - length + 1)
        )


@dataclass(frozen=True)
class Rules:
    """Which sentences a corpus keeps.

    Attributes:
        words: Fewest and most words.
        chars: Fewest and most characters.
        lowercase: Whether sentences that differ in case are one.
        excluded: Phrases that no sentence may contain, by what they are called where they are counted.
    """

    words: tuple[int, int] = (1, 77)
    chars: tuple[int, int] = (1, 400)
    lowercase: bool = True
    excluded: Mapping[str, Phrases] = field(default_factory=dict)

    def reason(self, text: str) -> str | None:
        """Why a normalised sentence is left out; None if it stays."""
        for count, (least, most) in ((len(text.split()), self.words), (len(text), self.chars)):
            if not least <= count <= most:
                return "too short" if count < least else "too long"
        return next((f"contains {name}" for name, phrases in self.excluded.items() if text in phrases), None)


@dataclass(frozen=True)
class Corpus:
    """A clean corpus in a folder.

    Attributes:
        folder: Where it lies.
        rows: Of each shard.
        counts: Sentences that were `read`, `kept`, and why others were not.
        fingerprint: Equal for equal sets of sentences.
        hashes: SHA-256 of each shard.
    """

    folder: Path
    rows: tuple[int, ...]
    counts: Mapping[str, int]
    fingerprint: str
    hashes: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, *, check_hashes: bool = False) -> Self:
        """Open what `write_corpus` has written.

        Args:
            folder: Where it lies.
            check_hashes: Read every shard and compare its SHA-256, too.

        Raises:
            DataError: If it is damaged.
            Interrupted: If a signal came.
        """
        try:
            about = read_json(folder / "corpus.json")
            found = cls(folder, tuple(about["rows"]), about["counts"], about["fingerprint"], tuple(about["sha256"]))
        except KeyError as error:
            raise _damaged(folder / "corpus.json", f"it has no {error}") from None
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(folder / "corpus.json", error) from None
        if check_hashes:
            found._check()
        return found

    def __len__(self) -> int:
        return sum(self.rows)

    @property
    def left_out(self) -> dict[str, int]:
        """How many lines are no part of it, by reason."""
        return {reason: count for reason, count in self.counts.items() if reason not in ("read", "kept")}

    def texts(self, number: int) -> list[str]:
        """The sentences of a shard.

        Raises:
            DataError: If it cannot be read.
        """
        found: list[str] = self._table(number, ["text"]).column("text").to_pylist()
        return found

    def rows_at(self, places: NDArray[np.int64]) -> Any:
        """The Arrow table (text, source, line) of sentences at these places, in the order asked for.

        Raises:
            DataError: If a shard cannot be read.
        """
        ends = np.cumsum(self.rows)
        shards = np.searchsorted(ends, places, side="right")
        order, parts = np.argsort(places, kind="stable"), [_SCHEMA.empty_table()]
        for number in np.unique(shards):
            mine = places[order][shards[order] == number]
            table = self._table(int(number), None)
            parts.append(table.take(pa.array(mine - (ends[number] - self.rows[number]))))
        return pa.concat_tables(parts).unify_dictionaries().take(pa.array(np.argsort(order, kind="stable")))

    def _check(self) -> None:
        for number, digest in enumerate(track(self.hashes, "checking text", total=len(self.hashes), unit="shards")):
            path = self.folder / shard_name(number)
            try:
                found = sha256_file(path)
            except OSError as error:
                raise _damaged(path, error) from None
            if found != digest:
                raise _damaged(path, f"its SHA-256 is {found[:12]}..., it was {digest[:12]}... when it was written")

    def _table(self, number: int, columns: list[str] | None) -> Any:
        path = self.folder / shard_name(number)
        try:
            return pq.read_table(path, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from None


def write_corpus(
    lines: Iterable[tuple[str, str | None, int]], folder: Path, rules: Rules, *, shard_size: int = 16384
) -> Corpus:
    """Clean a stream of lines into shards in an empty folder. Memory does not grow but by a share of the corpus.

    Args:
        lines: (file, sentence or None where a line has none, number of the line).
        folder: Where the corpus shall be.
        rules: Which sentences stay.
        shard_size: Sentences of each shard but the last.
    """
    spread = folder / "spread"
    spread.mkdir()
    counts = _spread(lines, spread, rules)
    unique = (record for path in sorted(spread.iterdir()) for record in _unique(path, counts))
    rows, digest = _write_shards(unique, folder, shard_size)
    spread.rmdir()
    return _described(folder, rows, counts, digest)


def write_texts(lines: Iterable[tuple[str, str, int]], folder: Path, *, shard_size: int = 16384) -> Corpus:
    """Write texts as they come into shards in an empty folder, none cleaned or left out: row i is the i-th.

    Args:
        lines: (file, text, number of the line).
        folder: Where they shall be.
        shard_size: Texts of each shard but the last.
    """
    records = ((_key(text), text, source, line) for source, text, line in lines)
    rows, digest = _write_shards(records, folder, shard_size)
    return _described(folder, rows, Counter(read=sum(rows)), digest)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _spread(lines: Iterable[tuple[str, str | None, int]], folder: Path, rules: Rules) -> Counter[str]:
    """What is kept, with its hash, in files by the first digits of that; counts of what was read and left out."""
    counts: Counter[str] = Counter({"read": 0})
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context((folder / f"{number:03}.jsonl").open("w", encoding="utf-8"))
            for number in range(_SPREAD)
        ]
        for source, raw, line in lines:
            counts["read"] += 1
            text = None if raw is None else normalise(raw, lowercase=rules.lowercase)
            try:
                key = _key(text or "")
            except UnicodeEncodeError:  # half a character, as JSON can have it
                text = None
            if text is None:
                counts["unreadable"] += 1
            elif (reason := rules.reason(text)) is not None:
                counts[reason] += 1
            else:
                files[int(key[:2], 16) * _SPREAD // 256].write(json.dumps([key, text, source, line]) + "\n")
    return counts


def _unique(path: Path, counts: Counter[str]) -> Iterator[tuple[str, str, str, int]]:
    """(hash, text, file, line) of each text of a file, by their hashes, of equal ones the first; the file goes."""
    with path.open(encoding="utf-8") as file:
        records = sorted(json.loads(line) for line in file)
    path.unlink()
    before = None
    for key, text, source, line in records:
        if text == before:
            counts["duplicates"] += 1
            continue
        before = text
        yield key, text, source, line


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _write_shards(records: Iterable[tuple[str, str, str, int]], folder: Path, shard_size: int) -> tuple[list[int], str]:
    """(rows of each shard, digest of the texts in their order) of records of (hash, text, file, line)."""
    digest, rows, held = hashlib.sha256(), list[int](), list[tuple[str, str, int]]()
    for key, text, source, line in records:
        digest.update(f"{key}{len(text)}".encode())
        held.append((text, source, line))
        if len(held) == shard_size:
            rows.append(_write_shard(folder / shard_name(len(rows)), held))
            held.clear()
    if held:
        rows.append(_write_shard(folder / shard_name(len(rows)), held))
    return rows, digest.hexdigest()


def _described(folder: Path, rows: Sequence[int], counts: Counter[str], fingerprint: str) -> Corpus:
    counts["kept"] = sum(rows)
    about = {
        "rows": rows,
        "counts": dict(sorted(counts.items())),
        "fingerprint": fingerprint,
        "sha256": [sha256_file(folder / shard_name(number)) for number in range(len(rows))],
    }
    write_json(folder / "corpus.json", about)
    return Corpus.open(folder)


def _write_shard(path: Path, rows: Sequence[tuple[str, str, int]]) -> int:
    texts, sources, numbers = zip(*rows, strict=True)
    columns = [pa.array(texts, pa.string()), pa.array(sources).dictionary_encode(), pa.array(numbers, pa.int64())]
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), path, compression="zstd", write_statistics=False)
    return len(rows)


def _damaged(path: Path, why: Exception | str) -> DataError:
    lines = str(why).strip().splitlines() or [type(why).__name__]
    return DataError(
        f"{path} is damaged: {lines[0].rstrip('.')}. Remove {path.parent} and give the same command again."
    )
