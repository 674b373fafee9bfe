"""The feature store: one pass over the images serves every protocol that sees the same view, now and in later runs.

A pass appends blocks of features to plain files and notes each block with its hash, so that memory does not grow with
the number of images, an interrupted pass goes on, and a damaged file is found and mended from its first bad block.
On several ranks each embeds blocks of its own and the main rank writes them in order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.data.labelled import Labelled
from attar.data.loader import EvaluationDataset, evaluation_batches
from attar.data.views import EVALUATION_VIEWS, EvaluationView
from attar.errors import DataError
from attar.evaluation.outputs import Output, fingerprint, normalising_by, read_outputs
from attar.models import Backbone
from attar.types import Statistics
from attar.utils.distributed import from_main, gather, is_main, rank, world_size
from attar.utils.io import append_line, read_json, read_lines, storage_errors, write_json
from attar.utils.locks import alone_at
from attar.utils.progress import track

OUTPUT_IMPLEMENTATION = 1
"""Part of every key; to be changed whenever a backbone's outputs change."""

_TOKENS = {"last4": 4}  # of an output, where they are several
_BATCH = 64
_BLOCK = 512  # images in a block, a multiple of _BATCH, so that batches are the same on any number of ranks


@dataclass(frozen=True)
class Features:
    """Outputs of a backbone for labelled images, memory-mapped.

    Attributes:
        arrays: Of each output, one row a readable image.
        labels: Their classes (n,), or (n, K) of 0 and 1 where an image may have several.
        positions: (n,) positions of these images among those asked for; unreadable ones are left out.
    """

    arrays: Mapping[Output, Tensor]
    labels: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, output: Output) -> Tensor:
        return self.arrays[output]


class FeatureStore:
    """Features of one backbone, kept in a folder.

    Args:
        backbone: Frozen model, on the device it shall run on.
        folder: Where features are kept; entries of other backbones, views and images may lie there too.
        workers: Loader processes.
    """

    def __init__(self, backbone: Backbone, folder: Path, *, workers: int = 0) -> None:
        self.backbone, self.folder, self.workers = backbone, folder, workers
        self.model = fingerprint(backbone)

    def features(
        self,
        images: Labelled,
        view: EvaluationView,
        outputs: Sequence[Output],
        *,
        statistics: Statistics | None = None,
        name: str = "images",
    ) -> Features | None:
        """The outputs of each readable image, from the store as far as it has them; None except on the main rank.

        Args:
            images: What to embed.
            view: How the model sees them.
            outputs: What to keep; the missing ones share one pass.
            statistics: Normalise by these in place of the backbone's own.
            name: What progress and messages call the images, in the plural.

        Raises:
            DataError: If no image can be read.
            RunDirectoryError: If the folder cannot be written.
        """
        with normalising_by(self.backbone, statistics):
            return self._features(images, view, outputs, name)

    def missing_bytes(
        self,
        images: Labelled,
        view: EvaluationView,
        outputs: Sequence[Output],
        *,
        statistics: Statistics | None = None,
    ) -> int:
        """About how many bytes `features` with the same arguments would add to the folder."""
        with normalising_by(self.backbone, statistics):
            return sum(self._missing(images, view, output) for output in outputs)

    def _missing(self, images: Labelled, view: EvaluationView, output: Output) -> int:
        file = self._place_of(self._about(images, view, output)) / "values.f32"
        whole = 4 * len(images) * self.backbone.embed_dim * _TOKENS.get(output, 1)
        return max(0, whole - (file.stat().st_size if file.is_file() else 0))

    def _features(
        self, images: Labelled, view: EvaluationView, outputs: Sequence[Output], name: str
    ) -> Features | None:
        places = {output: self._place(images, view, output) for output in outputs} if is_main() else {}
        with contextlib.ExitStack() as alone:
            for place in sorted(places.values()):
                alone.enter_context(alone_at(place / "lock"))
            return self._filled({output: _Column(place) for output, place in places.items()}, images, view, name)

    def _filled(
        self, columns: dict[Output, _Column], images: Labelled, view: EvaluationView, name: str
    ) -> Features | None:
        """The columns, once what they lack is embedded."""
        first = from_main(lambda: min(column.blocks for column in columns.values()))
        missing = from_main(lambda: [output for output, column in columns.items() if column.images < len(images)])
        for block in self._pass(images, view, missing, first, name) if missing else ():
            for output in missing if is_main() else ():
                columns[output].append(block, block.outputs.get(output))
        return _opened(columns, images, name) if is_main() else None

    def _about(self, images: Labelled, view: EvaluationView, output: Output) -> dict[str, Any]:
        return {
            "model": self.model,
            "statistics": asdict(self.backbone.preprocess),
            "images": images.fingerprint,
            "count": len(images),
            "view": asdict(view) | {"implementation": EVALUATION_VIEWS},
            "output": output,
            "implementation": {"attar": OUTPUT_IMPLEMENTATION, "timm": timm.__version__},
            "batch": _BATCH,
        }

    def _place_of(self, about: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / key[:2] / key

    def _place(self, images: Labelled, view: EvaluationView, output: Output) -> Path:
        place = self._place_of(about := self._about(images, view, output))
        if not (place / "about.json").is_file():
            write_json(place / "about.json", about | {"reference": self.backbone.source.name})
        return place

    def _pass(
        self, images: Labelled, view: EvaluationView, outputs: Sequence[Output], first: int, name: str
    ) -> Iterator[_Block]:
        """Blocks from the `first` one on, in order, on the main rank; the others only embed their share."""
        count = -(-len(images) // _BLOCK)
        own = list(range(first + rank(), count, world_size()))
        embedded = self._embed(images, view, outputs, own)
        starts = range(first * _BLOCK, len(images), world_size() * _BLOCK)  # of what all ranks embed together
        for _ in track(
            starts,
            f"embedding {name}",
            total=len(images) - first * _BLOCK,
            unit="images",
            size=lambda start: min(world_size() * _BLOCK, len(images) - start),
        ):
            found = gather(next(embedded, None))
            yield from (block for block in found if block is not None and is_main())

    def _embed(
        self, images: Labelled, view: EvaluationView, outputs: Sequence[Output], blocks: Sequence[int]
    ) -> Iterator[_Block]:
        """The blocks with these numbers."""
        spans = [np.arange(number * _BLOCK, min((number + 1) * _BLOCK, len(images))) for number in blocks]
        positions = np.concatenate(spans) if spans else np.empty(0, np.int64)
        dataset = EvaluationDataset(images.source, images.rows[positions], view)
        batches = iter(evaluation_batches(dataset, batch_size=_BATCH, workers=self.workers))
        for number, span in zip(blocks, spans, strict=True):
            parts, where = [], []
            for _ in range(-(-len(span) // _BATCH)):
                pixels, found = next(batches)
                if len(found):
                    parts.append(read_outputs(self.backbone, pixels, outputs))
                    where.append(positions[found.numpy()])
            arrays = {name: torch.cat([part[name] for part in parts]).numpy() for name in outputs} if parts else {}
            yield _Block(number, int(span[-1]) + 1, np.concatenate([np.empty(0, np.int64), *where]), arrays)


@dataclass(frozen=True)
class _Block:
    """Features of up to `_BLOCK` images in a row.

    Attributes:
        number: Its place among the blocks.
        images: How many images are done with it, readable or not.
        positions: Of the readable ones.
        outputs: Their features; empty where there are none.
    """

    number: int
    images: int
    positions: NDArray[np.int64]
    outputs: dict[Output, NDArray[np.float32]]


class _Column:
    """The file of one output, its positions, and a line for each block in `blocks.jsonl`, the last to be written."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.values, self.positions, self.lines = place / "values.f32", place / "positions.i64", place / "blocks.jsonl"
        self._known = self._whole_blocks()
        self._cut()

    @property
    def blocks(self) -> int:
        return len(self._known)

    @property
    def images(self) -> int:
        """How many images are done."""
        return int(self._known[-1]["images"]) if self._known else 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the values."""
        rows = sum(line["rows"] for line in self._known)
        return (rows, *next((line["shape"] for line in self._known if line["rows"]), [0]))

    def append(self, block: _Block, values: NDArray[np.float32] | None) -> None:
        """Write a block behind the others; one that is there already is passed over."""
        if block.number < self.blocks:
            return
        values = np.empty((0, 0), np.float32) if values is None else np.ascontiguousarray(values, np.float32)
        with storage_errors(self.place):
            for file, array in ((self.values, values), (self.positions, block.positions)):
                with file.open("ab") as out:
                    out.write(array.tobytes())
        line = {
            "images": block.images,
            "rows": len(block.positions),
            "shape": list(values.shape[1:]),
            "sha256": _hash(values.tobytes(), block.positions.tobytes()),
        }
        append_line(self.lines, line)
        self._known.append(line)

    def open(self) -> tuple[Tensor, Tensor]:
        """(values, positions), mapped; what is written to them stays in memory."""
        shape = self.shape
        if shape[0] == 0:
            return torch.empty(shape), torch.empty(0, dtype=torch.int64)
        mapped = np.memmap(self.values, np.float32, mode="c", shape=shape)
        where = np.memmap(self.positions, np.int64, mode="c", shape=shape[:1])
        return torch.from_numpy(mapped), torch.from_numpy(where)

    def _whole_blocks(self) -> list[dict[str, Any]]:
        """Lines of the blocks whose bytes are what was written, up to the first that is not."""
        whole: list[dict[str, Any]] = []
        if not (self.values.is_file() and self.positions.is_file()):
            return whole
        with self.values.open("rb") as values, self.positions.open("rb") as positions:
            for line in read_lines(self.lines):
                rows = line["rows"]
                if _hash(values.read(4 * rows * prod(line["shape"])), positions.read(8 * rows)) != line["sha256"]:
                    break
                whole.append(line)
        return whole

    def _cut(self) -> None:
        """Take away what follows the last whole block: what a killed writer left, or what is damaged."""
        if not self.lines.is_file() and not self.values.is_file():
            return
        rows = sum(line["rows"] for line in self._known)
        sizes = {self.values: 4 * rows * prod(self.shape[1:]), self.positions: 8 * rows}
        with storage_errors(self.place):
            for file, size in sizes.items():
                with file.open("ab") as out:
                    out.truncate(size)
            if len(read_lines(self.lines)) > self.blocks:
                self.lines.unlink()
                for line in self._known:
                    append_line(self.lines, line)


def _hash(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _opened(columns: Mapping[Output, _Column], images: Labelled, name: str) -> Features:
    opened = {output: column.open() for output, column in columns.items()}
    positions = next(iter(opened.values()))[1]
    if any(not torch.equal(where, positions) for _, where in opened.values()):
        opened, positions = _rows_of_all(opened)
    if len(positions) == 0:
        raise DataError(f"none of the {len(images)} {name} can be read, such as {images.source.name(0)}.")
    labels = torch.from_numpy(images.labels)[positions]
    return Features({output: values for output, (values, _) in opened.items()}, labels, positions)


def _rows_of_all(opened: Mapping[Output, tuple[Tensor, Tensor]]) -> tuple[dict[Output, tuple[Tensor, Tensor]], Tensor]:
    """The rows of images that each pass could read: a file may be there in one and gone in another."""
    common: set[int] = set.intersection(*(set(where.tolist()) for _, where in opened.values()))
    positions = torch.tensor(sorted(common), dtype=torch.int64)
    kept = {output: (values[torch.isin(where, positions)], positions) for output, (values, where) in opened.items()}
    return kept, positions


def stored(folder: Path) -> list[dict[str, Any]]:
    """What the store holds: an entry each, as `about.json` has it, with its bytes on the disk."""
    found = []
    for file in sorted(folder.glob("*/*/about.json")):
        size = sum(other.stat().st_size for other in file.parent.iterdir())
        found.append(read_json(file) | {"bytes": size})
    return found
