"""Packed images: scaled down once, in tar shards that any source opens, so that no run decodes the large ones again.

A member is called `PATH OF THE IMAGE/000000017.jpg`: in WebDataset's naming the number alone is a sample's key, and
messages still say which image it was. Its class stands beside it as `.cls`; the names of classes, which that format has
no place for, stand in `attar-pack.json`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch.utils.data import DataLoader, Dataset

from attar.data.base import Labels, Source
from attar.data.decode import open_image
from attar.data.files import File, is_url
from attar.data.shards import Shards
from attar.errors import DataError, DecodeError
from attar.types import BadFile
from attar.utils.io import new_file, read_json
from attar.utils.workers import begin_worker

PACK_FILE = "attar-pack.json"
_LONGEST_JPEG = 65_500  # pixels of a side
_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


class PackFile(BaseModel):
    """What `attar-pack.json` says of the shards beside it.

    Attributes:
        plan: What they are made of and how; shards of another plan do not belong to them.
        class_names: Of the numbers in `.cls`, None where the images have no labels.
        shards: How many there are.
        images: In all shards; None until all are there.
        bytes: Of all shards.
        unreadable: Images that could not be read, and are in none.
    """

    plan: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    shards: int | None = None
    images: int | None = None
    bytes: int | None = None
    unreadable: int | None = None


@dataclass(frozen=True)
class Packing:
    """How an image is packed.

    Attributes:
        short_side: Pixels of the shorter side at most.
        quality: Of the JPEG that a larger image becomes, its colours at full resolution.
    """

    short_side: int
    quality: int

    def __call__(self, data: bytes | NDArray[Any], *, name: str) -> tuple[bytes, str]:
        """(encoded image, ending of its file).

        A file that is small enough is copied; pixels that are become a PNG.

        Raises:
            DecodeError: If it cannot be decoded, to its last pixel.

        Example:
            >>> import numpy as np
            >>> data, ending = Packing(16, 95)(np.zeros((40, 30, 3), np.uint8), name="black")
            >>> open_image(data, name="black").size, ending
            ((16, 21), '.jpg')
        """
        image = open_image(data, name=name)
        scale = self.short_side / min(image.size)
        if scale >= 1:
            pixels = image.resized(None, image.size)
            if isinstance(data, bytes) and image.format in _ENDINGS:
                return data, _ENDINGS[image.format]
            return _encoded(pixels, "PNG"), ".png"
        width, height = (max(self.short_side, round(scale * side)) for side in image.size)
        pixels = image.resized(None, (width, height))
        if max(width, height) > _LONGEST_JPEG:
            return _encoded(pixels, "PNG"), ".png"
        return _encoded(pixels, "JPEG", quality=self.quality, subsampling=0), ".jpg"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"images-{number:06}.tar"


def packed_shards(
    source: Source,
    labels: Labels | None,
    packing: Packing,
    shards: Shards,
    numbers: Sequence[int],
    folder: Path,
    *,
    workers: int = 0,
) -> Iterator[Packed]:
    """The images of the shards with these numbers as they are packed; a shard's file is there after its last image.

    Images that cannot be read are in no shard. Memory does not grow with the number of images.

    Args:
        source: Images.
        labels: (n,) class of each.
        packing: How they are packed.
        shards: How their rows are split.
        numbers: Which shards to make.
        folder: Where.
        workers: Processes that decode and encode.

    Raises:
        RunDirectoryError: If the folder cannot be written or the disk is full.
        DataError: If the system gives no room for the processes.
    """
    loader = DataLoader(
        _Rows(source, packing),
        batch_sampler=shards.batches(numbers),
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # else the loader draws a number from the global one
        worker_init_fn=begin_worker,
    )
    images = _one_by_one(loader, workers)
    for number in numbers:
        with new_file(folder / shard_name(number)) as temporary, tarfile.open(temporary, "w") as tar:
            for row in shards.rows(number):
                image = next(images)
                assert image.row == row, f"row {image.row} came in place of {row}"
                if image.bad is None:
                    _add(tar, image, None if labels is None else int(labels[row]))
                yield image


def _one_by_one(loader: Iterable[list[Packed]], workers: int) -> Iterator[Packed]:
    """Images of a loader; its own trouble with the system is not that of the file which is being written."""
    try:
        for batch in loader:
            yield from batch
    except OSError as error:
        raise DataError(f"{workers} processes cannot read and pack images ({error}). Try fewer --workers.") from None


@dataclass(frozen=True)
class Packed:
    """One image on its way into a shard, with its size where it came from; `bad` says why it is left out."""

    row: int
    name: str
    data: bytes = b""
    ending: str = ""
    bytes_before: int = 0
    is_copy: bool = False
    bad: BadFile | None = None


class _Rows(Dataset[Packed]):
    """Packed images by row, made in the loader's workers."""

    def __init__(self, source: Source, packing: Packing) -> None:
        self.source, self.packing = source, packing

    def __getitem__(self, row: int) -> Packed:
        name = self.source.name(row)
        try:
            found = self.source.read(row)
            data, ending = self.packing(found, name=name)
            before = len(found) if isinstance(found, bytes) else found.nbytes
            return Packed(row, name, data, ending, before, is_copy=data is found)
        except DecodeError as error:
            return Packed(row, name, bad=BadFile(row, name, str(error)))


def _add(tar: tarfile.TarFile, image: Packed, label: int | None) -> None:
    key = f"{image.name.strip('/')}/{image.row:09}"
    _add_bytes(tar, key + image.ending, image.data)
    if label is not None:
        _add_bytes(tar, f"{key}.cls", str(label).encode())


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _encoded(pixels: Any, kind: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    pixels.save(file, kind, **settings)
    return file.getvalue()


def read_pack_file(folder: Path) -> PackFile:
    """What is said of the packed images in a folder.

    Raises:
        DataError: If it is damaged.
    """
    try:
        return PackFile.model_validate(read_json(folder / PACK_FILE))
    except (OSError, ValueError):
        raise DataError(f"{folder / PACK_FILE} is damaged. Pack the images once more, into a new folder.") from None


def class_names_beside(files: Sequence[File]) -> list[str] | None:
    """Names of the classes that `attar data pack` wrote beside its shards; None of other shards, or behind a URL.

    Raises:
        DataError: If not all images have been packed yet, or not all shards are there where all of a folder are meant,
            or the shards are of several packs with other classes.
    """
    folders = dict.fromkeys(Path(file.address).parent for file in files if not is_url(file.address))
    packs = {folder: read_pack_file(folder) for folder in folders if (folder / PACK_FILE).is_file()}
    for folder, pack in packs.items():
        if pack.images is None:
            raise DataError(f"{folder} is not packed to its end. Give its attar data pack command once more.")
        own = [file for file in files if Path(file.address).parent == folder]
        if len(own) == len(list(folder.glob("*.tar"))) < (pack.shards or 0):  # all that is there, not a choice
            raise DataError(
                f"{folder} holds {len(own):,} of {pack.shards:,} packed shards. Copy the others, or give its attar data"
                f" pack command once more; without {PACK_FILE} those that are there will do."
            )
    names = [packs[folder].class_names if folder in packs else None for folder in folders]
    if packs and any(other != names[0] for other in names):
        one, *_, other = folders
        raise DataError(f"shards in {one} and {other} count other classes. Give them as two places of --data.")
    return list(names[0]) if names and names[0] is not None else None
