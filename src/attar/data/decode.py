"""Bytes to RGB: a handle on one image that is decoded only as far as a view needs it.

Rules that hold for every format and every decoder, so that a view is the same on any machine:

- at most `MAX_PIXELS`, read from the header before anything is decoded;
- EXIF orientation is applied; a damaged EXIF block counts as none;
- transparency is dropped and the colours below it are kept, as `convert("RGB")` does in timm and torchvision;
- 16-bit samples keep their high byte; 32-bit integers and floats are refused, since their range is unknown;
- CMYK and YCCK follow Pillow's conversion without colour profile; of an animation the first frame counts.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from attar.data.rgbx import PixelBox, Size, image_of, part_of, scaled
from attar.errors import DecodeError
from attar.utils.seeding import numpy_generator

MAX_PIXELS = 64_000_000
"""Width times height above which a file is refused: 200 MB as RGB, and nothing a 224 px view gains from."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are read; MPO, the JPEG of phones and stereo cameras, is opened as JPEG."""

Box = tuple[float, float, float, float]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SILENCE = threading.Lock()
if hasattr(os, "register_at_fork"):  # a data loader's worker must not inherit the lock of a thread it does not have
    os.register_at_fork(before=_SILENCE.acquire, after_in_parent=_SILENCE.release, after_in_child=_SILENCE.release)


def open_image(data: bytes | NDArray[np.uint8], *, name: str) -> EncodedImage:
    """Read the header of an encoded image, or wrap pixels that are decoded already.

    Args:
        data: The bytes of a file in one of `FORMATS`, or (H, W, 3) uint8 RGB.
        name: What messages call the image, usually its path.

    Raises:
        DecodeError: If it is no image of these formats, is damaged, or has more than `MAX_PIXELS` pixels.
            Damage to the pixels themselves may come to light only in `EncodedImage.resized`.

    Example:
        >>> open_image(np.zeros((20, 30, 3), np.uint8), name="black").resized(None, (8, 4)).size
        (8, 4)
    """
    if isinstance(data, np.ndarray):
        return _wrap_pixels(data, name)
    if not data:
        raise DecodeError(f"{name}: the file is empty (0 bytes).")
    with _naming(name):
        image = _open_header(data, name)
        return EncodedImage(name, image.size, data=data, opened=image, orientation=_orientation(image))


class EncodedImage:
    """One image, decoded when pixels are asked for and no further than they need. Made by `open_image`.

    What was decoded is kept, so several views of one handle cost one decode; drop the handle to free it.
    """

    def __init__(
        self,
        name: str,
        stored_size: Size,
        *,
        data: bytes = b"",
        opened: Image.Image | None = None,
        orientation: int = 1,
        decoded: Image.Image | None = None,
    ) -> None:
        self.name = name
        self.format = opened.format if opened is not None else None
        """As Pillow calls it; None where pixels were given."""
        self._stored_size = stored_size
        self._data = data
        self._opened = opened
        self._orientation = orientation
        self._decoded = {1: decoded} if decoded is not None else {}
        self._is_jpeg = self.format in ("JPEG", "MPO")
        # Pillow decides what a JPEG's EXIF says, so another decoder gets only files that have none.
        self._is_plain_jpeg = opened is not None and self.format == "JPEG" and "exif" not in opened.info

    @property
    def size(self) -> Size:
        """(width, height) in pixels after EXIF orientation; known without decoding."""
        width, height = self._stored_size
        return (height, width) if self._orientation >= 5 else (width, height)

    def resized(self, box: Box | None, size: Size) -> Image.Image:
        """The part of the image in `box`, scaled to `size` with an antialiased bicubic filter, in mode RGB.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the box then still has `size` pixels or more on
        both sides. As in a resize followed by a crop, the filter also sees pixels just outside the box.

        Args:
            box: (left, top, right, bottom) in pixels of the oriented image, fractions allowed; None is all of it.
            size: (width, height) of the result in pixels.

        Raises:
            DecodeError: If the pixels cannot be decoded.
        """
        box = box or (0.0, 0.0, *self.size)
        assert 0 <= box[0] < box[2] <= self.size[0], f"box {box} leaves an image of {self.size}"
        assert 0 <= box[1] < box[3] <= self.size[1], f"box {box} leaves an image of {self.size}"
        stored = self._stored_box(box)
        turned = (size[1], size[0]) if self._orientation >= 5 else size
        reduction = self._reduction(stored, turned)
        left, top, right, bottom = (edge / reduction for edge in stored)
        pixels = _resample(self._pixels(reduction), (left, top, right, bottom), turned)
        if self._orientation in _TURNS:
            pixels = pixels.transpose(_TURNS[self._orientation])
        return pixels if pixels.mode == "RGB" else pixels.convert("RGB")

    def cut(self, box: PixelBox, size: Size) -> Image.Image:
        """The part of the image in `box`, scaled to `size` by torch, in mode RGB: for training views, several times as
        fast as `resized`, and as crop and resize of torchvision, whose filter sees nothing outside of the box either.

        Where a JPEG is decoded at reduced scale (as in `resized`), the box is rounded to whole pixels of that scale.

        Args:
            box: (left, top, right, bottom) in whole pixels of the oriented image.
            size: (width, height) of the result in pixels.

        Raises:
            DecodeError: If the pixels cannot be decoded.
        """
        stored = self._stored_box(box)
        turned = (size[1], size[0]) if self._orientation >= 5 else size
        reduction = self._reduction(stored, turned)
        left, top, right, bottom = (round(edge / reduction) for edge in stored)
        pixels = image_of(scaled(part_of(self._pixels(reduction), (left, top, right, bottom)), turned))
        return pixels.transpose(_TURNS[self._orientation]) if self._orientation in _TURNS else pixels

    def _stored_box(self, box: Box) -> Box:
        """`box` in the coordinates of the pixels as the file stores them."""
        left, top, right, bottom = box
        width, height = self._stored_size
        if self._orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        if self._orientation in (2, 3, 7, 8):
            left, right = width - right, width - left
        if self._orientation in (3, 4, 6, 7):
            top, bottom = height - bottom, height - top
        return left, top, right, bottom

    def _reduction(self, box: Box, size: Size) -> int:
        """The largest divisor of both sides that leaves `size` pixels in `box`."""
        if not self._is_jpeg:
            return 1
        spare = min((box[2] - box[0]) / size[0], (box[3] - box[1]) / size[1])
        return next((divisor for divisor in (8, 4, 2) if spare >= divisor), 1)

    def _pixels(self, reduction: int) -> Image.Image:
        """The whole image as stored, in mode L or RGB, each side divided by `reduction` and rounded up."""
        if reduction not in self._decoded:
            with _naming(self.name):
                pixels = self._decode_elsewhere() if reduction == 1 and self._is_plain_jpeg else None
                self._decoded[reduction] = self._decode(reduction) if pixels is None else pixels
        return self._decoded[reduction]

    def _decode(self, reduction: int) -> Image.Image:
        image, self._opened = self._opened or _open_header(self._data, self.name), None
        if reduction > 1:
            width, height = self._stored_size
            image.draft(None, (width // reduction, height // reduction))
            assert image.size == (-(-width // reduction), -(-height // reduction)), "draft chose another scale"
        image.load()
        return _eight_bit(image)

    def _decode_elsewhere(self) -> Image.Image | None:
        """Pixels from torchcodec where it is at hand; None leaves the file, and its error, to Pillow."""
        decode = torchcodec_jpeg()
        if decode is not None:
            with contextlib.suppress(Exception):
                return Image.fromarray(decode(self._data))
        return None


@functools.cache
def torchcodec_jpeg() -> Callable[[bytes], NDArray[np.uint8]] | None:
    """torchcodec's JPEG decoder as bytes -> (H, W, 3) RGB, or None where it is absent or not equal to Pillow's.

    Equality is checked once per process on a small image, bit by bit, so having torchcodec cannot change a view.
    It does not decode at reduced scale and gains nothing on other formats: see notes/torchcodec.md.
    """
    try:
        from torchcodec.decoders import decode_jpeg
    except Exception:  # absent, older than 0.16, or made for another torch, which raises many things
        return None

    def decode(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(decode_jpeg(data, mode="RGB").permute(1, 2, 0).numpy(), dtype=np.uint8)

    return decode if _equals_pillow(decode) else None


def _equals_pillow(decode: Callable[[bytes], NDArray[np.uint8]]) -> bool:
    noise = numpy_generator(0, "decoder check").integers(0, 256, (37, 53, 3), dtype=np.uint8)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "JPEG", subsampling=subsampling)
        try:
            if not np.array_equal(decode(file.getvalue()), np.asarray(Image.open(file))):
                return False
        except Exception:  # a decoder that fails on a sound file is not used
            return False
    return True


def _wrap_pixels(pixels: NDArray[np.uint8], name: str) -> EncodedImage:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DecodeError(
            f"{name}: the array is {pixels.dtype} of shape {pixels.shape}; decoded images are uint8 (H, W, 3)."
        )
    decoded = Image.fromarray(np.ascontiguousarray(pixels))
    return EncodedImage(name, decoded.size, decoded=decoded)


def _open_header(data: bytes, name: str) -> Image.Image:
    """The image with its size known, its pixels not decoded."""
    try:
        with _silence():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own, higher limit comes first, and says only the product
        found = re.search(r"\d+", str(error))
        raise _too_large(name, int(found[0]) if found else MAX_PIXELS + 1) from error
    except UnidentifiedImageError as error:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise DecodeError(f"{name}: not a readable {kinds} file; it begins with {data[:8]!r}.") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, image.width * image.height)
    return image


def _too_large(name: str, pixels: int) -> DecodeError:
    return DecodeError(
        f"{name}: the image has {pixels:,} pixels, the limit is {MAX_PIXELS:,}. Try: scale it down or leave it out."
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from 1 to 8; 1 where there is none."""
    if image.format == "PNG":
        image.load()  # its EXIF may follow the pixels; loading here keeps their errors apart from those of EXIF
    with _silence():
        if image.format == "TIFF":
            image.load()  # Pillow turns TIFF by itself, in its size too
            return 1
        try:
            value = image.getexif().get(ExifTags.Base.Orientation)
            return value if value in _TURNS else 1
        except Exception:  # the pixels are sound: a damaged EXIF block is no reason to lose the image
            return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """A loaded image in mode L or RGB, without transparency."""
    image.info.pop("transparency", None)  # convert() would warn about it, and look for a colour to put in its place
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"the range of 32-bit samples, mode {image.mode}, is unknown")
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _resample(image: Image.Image, box: Box, size: Size) -> Image.Image:
    """Antialiased bicubic resize of `box`, first along the rows, then along the columns.

    `Image.resize` rounds to 8 bits between its two passes and from Pillow 13 on picks their order by the shape of the
    image. One pass a call keeps views equal in every version.
    """
    left, top, right, bottom = box
    width, height = size
    reach = 2 * max(1.0, (bottom - top) / height) + 1  # of the filter, in rows, and one to be safe
    first, last = max(0, math.floor(top - reach)), min(image.height, math.ceil(bottom + reach))
    rows = image if last - first == image.height else image.crop((0, first, image.width, last))
    rows = rows.resize((width, last - first), Image.Resampling.BICUBIC, box=(left, 0, right, last - first))
    return rows.resize(size, Image.Resampling.BICUBIC, box=(0, top - first, width, bottom - first))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No warnings of Pillow (large image, odd metadata) in this block.

    `catch_warnings` swaps global state, so one thread at a time: only headers are read here, which is quick.
    """
    with _SILENCE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever a damaged file makes Pillow raise into a DecodeError that names the file."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error, MemoryError ...: Pillow's errors share no base
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DecodeError(f"{name}: cannot be decoded ({reason}).") from error
