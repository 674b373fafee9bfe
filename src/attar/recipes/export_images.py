"""Images that an export is compared on and int8 files are calibrated by: as bytes, a few, wherever they lie."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attar.config import ExportConfig
from attar.data.base import Source
from attar.data.decode import open_image
from attar.data.references import shown
from attar.data.sources import open_source
from attar.data.views import EvaluationView
from attar.errors import DataError, DecodeError
from attar.export.parity import BATCHES
from attar.export.preprocess import prepare
from attar.recipes.shipment import Shipment
from attar.utils.progress import Log, track

SCENES = "playground:0"
_CALIBRATED = 8  # images in a batch of the calibration


def images_to_compare(config: ExportConfig, shipment: Shipment, log: Log) -> list[bytes]:
    """Encoded images, as many as the batches of the comparison hold, spread over the source.

    Raises:
        DataError: If the images that were asked for cannot be read.
    """
    wanted = sum(BATCHES)
    if config.images is not None:
        return _some(open_source(config.images), wanted, ", ".join(map(shown, config.images)))
    settings = shipment.settings
    for place in (settings.get(name) for name in ("monitor", "data", "images", "labelled")):
        try:
            if place is not None:
                return _some(open_source(place), wanted, str(place))
        except DataError:  # the run was somewhere else
            continue
    log.say("  images   none of the run's are here: scenes of the playground. Give photos of yours with --images")
    return _some(open_source(SCENES), wanted, SCENES)


def calibration_batches(config: ExportConfig, img_settings: dict[str, Any]) -> Iterator[NDArray[Any]]:
    """Batches of images as the file takes them, at most `calibration_images`, read one after the other.

    Raises:
        DataError: If none can be read: at once, before a batch is asked for.
    """
    assert config.calibration is not None
    source = open_source(config.calibration)
    rows = _spread(len(source), config.calibration_images)
    if all(_readable(source, row) is None for row in rows):  # the first that can be read will do
        raise DataError(f"none of the {len(rows)} images for int8 can be read, such as {source.name(rows[0])}.")
    return _batches(source, rows, img_settings)


def _batches(source: Source, rows: Sequence[int], img_settings: dict[str, Any]) -> Iterator[NDArray[Any]]:
    batch = []
    for row in track(rows, "calibrating int8", total=len(rows), unit="images"):
        try:
            batch.append(prepare(io.BytesIO(_encoded(source, row)), img_settings))
        except (DecodeError, OSError):
            continue
        if len(batch) == _CALIBRATED:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def views_of(images: Sequence[bytes], *, img_size: int, crop_pct: float) -> Tensor:
    """(n, 3, S, S) uint8 as attar itself sees the images."""
    view = EvaluationView(img_size, crop_pct)
    return torch.stack([view(open_image(image, name=f"image {number}")) for number, image in enumerate(images)])


def _some(source: Source, wanted: int, name: str) -> list[bytes]:
    """Readable images, repeated where there are too few."""
    read = (_readable(source, row) for row in _spread(len(source), 4 * wanted))
    found = [image for image in read if image is not None]
    if not found:
        raise DataError(f"no image of {name} can be read, such as {source.name(0)}. Give others with --images.")
    chosen = [found[k] for k in _spread(len(found), wanted)]
    return [chosen[k % len(chosen)] for k in range(wanted)]


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` rows, at equal distances."""
    return [int(row) for row in np.unique(np.linspace(0, count - 1, min(wanted, count)).round())]


def _readable(source: Source, row: int) -> bytes | None:
    """The file of an image, None where it cannot be decoded."""
    try:
        data = _encoded(source, row)
        open_image(data, name=source.name(row)).resized(None, (8, 8))
    except (DecodeError, OSError):
        return None
    return data


def _encoded(source: Source, row: int) -> bytes:
    """The file of an image; of pixels that are in no file, a PNG."""
    data = source.read(row)
    if isinstance(data, bytes):
        return data
    file = io.BytesIO()
    Image.fromarray(np.asarray(data)).save(file, "PNG")
    return file.getvalue()
