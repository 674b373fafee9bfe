"""From an image file to what the model takes, with numpy and pillow alone: the same pixels as in attar."""

import json
import math
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_settings(folder: Path) -> dict[str, Any]:
    """What `preprocessor.json` in the folder says."""
    settings: dict[str, Any] = json.loads((folder / "preprocessor.json").read_text(encoding="utf-8"))
    return settings


def prepare(file: str | Path | IO[bytes], settings: dict[str, Any]) -> NDArray[Any]:
    """One image as the model takes it: (3, S, S) float32, normalised; or (S, S, 3) uint8 where it does that itself."""
    pixels = np.array(view(file, settings["img_size"], settings["crop_pct"]))  # (S, S, 3), which may be written to
    if settings["normalise"] == "inside":
        return pixels
    values = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    normalised: NDArray[np.float32] = (values - mean) / std
    return normalised


def view(file: str | Path | IO[bytes], side: int, crop_pct: float = 1.0) -> Image.Image:
    """Short side to `side / crop_pct`, then the centre, side x side, in one bicubic resampling with antialiasing."""
    image = Image.open(file)
    if image.format == "TIFF":  # which Pillow turns upright itself
        image.load()
    turn = 1 if image.format == "TIFF" else image.getexif().get(0x0112, 1)  # EXIF orientation
    size = image.size[::-1] if turn >= 5 else image.size
    scale = round(side / crop_pct)
    resized = [scale if length == min(size) else int(scale * length / min(size)) for length in size]
    box = []  # left, right, top, bottom in pixels of the upright image
    for length, to in zip(size, resized, strict=True):
        start, per = round((to - side) / 2), length / to
        box += [start * per, min((start + side) * per, length)]
    left, right, top, bottom = box if turn < 5 else [*box[2:], *box[:2]]  # as the file stores it
    width, height = image.size
    if turn in (2, 3, 7, 8):
        left, right = width - right, width - left
    if turn in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    spare = min((right - left) / side, (bottom - top) / side)
    less = next((divisor for divisor in (8, 4, 2) if spare >= divisor), 1) if image.format in ("JPEG", "MPO") else 1
    if less > 1:
        image.draft(None, (width // less, height // less))  # decodes at 1/2, 1/4 or 1/8, much faster
    image.info.pop("transparency", None)
    if image.mode.startswith("I;16"):
        pixels = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    else:
        pixels = image.convert("RGB")
    left, right, top, bottom = (edge / less for edge in (left, right, top, bottom))
    # rows before columns, each rounded to 8 bits: one call picks its own order in some versions of Pillow
    reach = 2 * max(1.0, (bottom - top) / side) + 1  # of the filter, in rows, and one to be safe
    first, last = max(0, math.floor(top - reach)), min(pixels.height, math.ceil(bottom + reach))
    rows = pixels.crop((0, first, pixels.width, last))
    rows = rows.resize((side, last - first), Image.Resampling.BICUBIC, box=(left, 0, right, last - first))
    pixels = rows.resize((side, side), Image.Resampling.BICUBIC, box=(0, top - first, side, bottom - first))
    return pixels.transpose(_TURNS[turn]) if turn in _TURNS else pixels
