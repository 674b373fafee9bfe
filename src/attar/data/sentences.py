"""Sentences in files, here or behind a URL, read one after another: text, JSONL or Parquet, as they stand."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from attar.data.files import File, expand_braces, find_below, is_url, local_path, without_credentials
from attar.errors import DataError, meant_beside

SENTENCE_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")
_LONGEST = 1 << 20  # bytes of a line; what is longer is no sentence
_ROWS = 8192  # of Parquet held at a time
_LOOKED_AT = 1000  # lines of JSONL after which one at least must have had the column


def sentence_files(places: Sequence[str]) -> list[File]:
    """The files that places name, in one order however they are given: files, x-{00..12}.txt, folders and all below.

    Raises:
        DataError: If a place does not exist, holds no sentences, or a file is of another kind.
    """
    found = {file.address: file for place in places for file in _files_of(place)}
    return [found[address] for address in sorted(found)]


def read_sentences(file: File, *, column: str = "text") -> Iterator[tuple[str | None, int]]:
    """(sentence, line from 1) of a file, in its order; None where a line holds none. One line is held at a time.

    Args:
        file: `.txt` has a sentence a line; `.jsonl` an object a line, or the plain text in quotes; `.parquet` rows, of
            which a few thousand are held. Both may have a list of sentences in place of one.
        column: Where an object or a row has them.

    Raises:
        DataError: If it cannot be read, or has no such column.
    """
    name = _plain_name(file)
    with file.open() as raw:
        if name.endswith(".parquet"):
            yield from _rows(file, raw, column)
            return
        stream: Any = gzip.GzipFile(fileobj=raw) if name.endswith(".gz") else raw
        lines = _lines(file, stream)
        yield from _objects(file, lines, column) if ".jsonl" in name else lines


def _files_of(place: str) -> list[File]:
    if "{" in place and (is_url(place) or not local_path(place).exists()):
        return [_known(File(one if is_url(one) else str(local_path(one)))) for one in expand_braces(place)]
    if is_url(place):
        if File(place).name.lower().endswith(SENTENCE_SUFFIXES):
            return [File(place)]
        found = [File(f"{place.rstrip('/')}/{below}") for below in find_below(place)]
    else:
        path = local_path(place)
        if not path.is_dir():
            if not path.exists():
                raise DataError(
                    f"{path} does not exist.{meant_beside(path)} Give a file of sentences, or a folder of such files."
                )
            return [_known(File(str(path)))]
        found = [File(str(below)) for below in path.rglob("*") if below.is_file()]
    files = [file for file in found if _plain_name(file).endswith(SENTENCE_SUFFIXES) and file.name[0] != "."]
    if not files:
        raise DataError(f"{without_credentials(place)} holds no sentences: no {', '.join(SENTENCE_SUFFIXES)} is in it.")
    return files


def _known(file: File) -> File:
    if not _plain_name(file).endswith(SENTENCE_SUFFIXES):
        raise DataError(f"{file} is no file of sentences. Give {', '.join(SENTENCE_SUFFIXES)}, or a folder of these.")
    return file


def _plain_name(file: File) -> str:
    return file.name.lower()


def _lines(file: File, stream: BinaryIO) -> Iterator[tuple[str | None, int]]:
    """Lines as text; None for one that is no UTF-8 or longer than any sentence."""
    number = 0
    with _damage_in_words(file):
        while line := stream.readline(_LONGEST):
            number += 1
            is_whole = line.endswith(b"\n") or len(line) < _LONGEST
            while not is_whole and (rest := stream.readline(_LONGEST)):  # passed over in pieces
                is_whole = rest.endswith(b"\n")
                line = b"\xff"
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8"), number
            except UnicodeDecodeError:
                yield None, number


def _objects(file: File, lines: Iterator[tuple[str | None, int]], column: str) -> Iterator[tuple[str | None, int]]:
    """Sentences of JSON lines; blank lines are passed over."""
    has_any, keys = False, set[str]()
    for line, number in lines:
        if line is not None and not line.strip():
            continue
        value = None
        with contextlib.suppress(ValueError, RecursionError):
            value = None if line is None else json.loads(line)
        if isinstance(value, dict):
            keys.update(list(value)[:20])
            value = value.get(column)
        texts: list[str | None] = [text for text in _listed(value) if isinstance(text, str)]
        has_any |= bool(texts)
        if not has_any and number >= _LOOKED_AT:
            _complain(file, column, keys)
        for text in texts or [None]:
            yield text, number
    if not has_any and keys:
        _complain(file, column, keys)


def _rows(file: File, raw: BinaryIO, column: str) -> Iterator[tuple[str | None, int]]:
    with _damage_in_words(file), pq.ParquetFile(raw) as parquet:
        names = parquet.schema_arrow.names
        if column not in names:
            _complain(file, column, names)
        number = 0
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
            for value in batch.column(0).to_pylist():
                number += 1
                for text in _listed(value) or [None]:
                    yield (text if isinstance(text, str) else None), number


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _complain(file: File, column: str, known: Any) -> None:
    raise DataError(
        f"{file} has no sentences in '{column}'; it has {', '.join(sorted(known)) or 'no columns at all'}."
        " Name the right one with --column."
    )


@contextlib.contextmanager
def _damage_in_words(file: File) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is damaged ({str(error).strip().splitlines()[0].rstrip('.')}).") from None
