"""Captions of images that are trained on: a file beside them, one caption an image, by what the source calls it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from attar.data.base import Source
from attar.errors import DataError

_SCHEMA = pa.schema([("image", pa.large_string()), ("text", pa.large_string()), ("line", pa.int64())])
_ROWS = 65536  # handled as Python's objects at a time: in Arrow they take a small share of that


def caption_file(path: str | Path) -> Path:
    """The file of captions that a word names.

    Raises:
        DataError: If there is none, or it is in no format known here.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".tsv", ".jsonl"):
        raise DataError(f"captions {path} are in no format known here. Give .tsv (image, caption) or .jsonl.")
    if not path.is_file():
        raise DataError(f"captions {path} do not exist. Give a file.")
    return path


def read_captions(path: Path, source: Source) -> Iterator[tuple[str, int]]:
    """(caption, its line from 1) of each image, in the order of the source; of several captions the first.

    The file and the names of all images are held meanwhile, as Arrow holds text.

    Args:
        path: `.tsv` with a line IMAGE<TAB>CAPTION, or `.jsonl` with objects of `image` and `text`, a caption or a
            list of them.
        source: The images. Each must have a caption; captions of other images are passed over.

    Raises:
        DataError: If the file cannot be read, or an image has none.
    """
    known = _table(path)
    names = _names(source)
    places = pc.index_in(names, value_set=known.column("image")).combine_chunks()  # of the first that is equal
    if places.null_count:
        first = names[places.is_null().index(True).as_py()]
        there = f"calls its first '{known.column('image')[0]}'" if len(known) else "holds none"
        raise DataError(
            f"{places.null_count:,} of {len(names):,} images have no caption in {path}: attar calls one of them"
            f" '{first}', the file {there}. Call images there as attar does, or leave them out of --images."
        )
    for start in range(0, len(places), _ROWS):
        found = known.take(places[start : start + _ROWS])
        yield from zip(found.column("text").to_pylist(), found.column("line").to_pylist(), strict=True)


def _names(source: Source) -> Any:
    """What the source calls each image, as an Arrow array in chunks: few are Python's objects at a time."""
    starts = range(0, len(source), _ROWS)
    rows = (range(start, min(start + _ROWS, len(source))) for start in starts)
    return pa.chunked_array([pa.array(map(source.name, some), pa.large_string()) for some in rows], pa.large_string())


def _table(path: Path) -> Any:
    """All lines as an Arrow table (image, text, line)."""
    lines, parse = _lines(path), _object if path.suffix == ".jsonl" else _pair
    found = ((*parse(path, number, line), number) for number, line in lines)
    parts = []
    while rows := list(itertools.islice(found, _ROWS)):
        columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), _SCHEMA.types, strict=True)]
        parts.append(pa.Table.from_arrays(columns, schema=_SCHEMA))
    return pa.concat_tables([_SCHEMA.empty_table(), *parts]).combine_chunks()


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of all but empty ones."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise DataError(f"line {number} of {path} is no UTF-8. Save the file as UTF-8.") from None
            if line.strip():
                yield number, line


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    image, _, text = line.partition("\t")
    if not text.strip():
        raise DataError(f"line {number} of {path} is no IMAGE<TAB>CAPTION: '{line.strip()[:60]}'. Mend or remove it.")
    return image, text.strip()


def _object(path: Path, number: int, line: str) -> tuple[str, str]:
    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError, RecursionError):
        found = json.loads(line)
        image, text = found["image"], found["text"]
        text = text[0] if isinstance(text, list) else text
        if isinstance(image, str) and isinstance(text, str) and (text := text.strip()):
            (image + text).encode()  # no half characters, as JSON can have them
            return image, text
    raise DataError(f"line {number} of {path} is no object of image and text: '{line[:60]}'. Mend or remove it.")
