"""Training crops of annotated images as mmsegmentation makes them: scaled, cut, mirrored, distorted, padded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attar.data.decode import EncodedImage
from attar.data.geometry import Geometry
from attar.data.loader import Item
from attar.data.pairs import VOID, Pair, PairSource
from attar.data.views import View
from attar.errors import DataError
from attar.types import IMAGENET
from attar.utils.seeding import numpy_generator
from attar.utils.workers import begin_worker

Crop = tuple[Tensor, Tensor]
"""(3, S, S) uint8 pixels and their (S, S) annotation; with a batch in front of both."""

_MOST = 0.75  # share of a crop that one class may fill (mmsegmentation's cat_max_ratio)
_TRIES = 10
_PADDING = tuple(round(255 * mean) for mean in IMAGENET[0])  # 0 once it is normalised


@dataclass(frozen=True)
class Crops:
    """How an annotated image becomes a training crop: a pure function of image, seed and place in the stream.

    Attributes:
        geometry: Side S of crops, and the size of images before they are scaled.
        scales: Least and greatest factor of that size.
        void: What stands in the annotation where there is no image.
        seed: Names what is drawn.
    """

    geometry: Geometry
    scales: tuple[float, float]
    void: int
    seed: int

    def __call__(self, image: EncodedImage, target: Tensor, *, place: int) -> Crop:
        """The crop at a place of the stream.

        Args:
            image: Of any size.
            target: (H, W) of the same size: uint8 classes or float32 depth.
            place: Names what is drawn, with the seed.
        """
        rng = numpy_generator(self.seed, "dense crop", place)
        factor = rng.uniform(*self.scales)
        height, width = self.geometry.base_size(image.size)
        scaled = max(1, round(factor * height)), max(1, round(factor * width))
        rows, columns, cut = self._window(target, scaled, rng)
        pixels = np.asarray(_resized(image, scaled, rows, columns))
        if rng.random() < 0.5:
            pixels, cut = pixels[:, ::-1], cut.flip(1)
        size = self.geometry.crop
        return _padded(distorted(pixels, rng), size, _PADDING), _padded_map(cut, size, self.void)

    def _window(self, target: Tensor, scaled: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice, Tensor]:
        """Rows and columns of the scaled image, and the annotation there; drawn again where one class fills it."""
        for _ in range(_TRIES):
            rows, columns = (_cut(length, self.geometry.crop, rng) for length in scaled)
            cut = target[_nearest(rows, scaled[0], target.shape[0])][:, _nearest(columns, scaled[1], target.shape[1])]
            if target.is_floating_point() or _is_varied(cut):
                break
        return rows, columns, cut


class CropStream(Dataset[Crop | DataError]):
    """Crops by place in an endless stream: every image once an epoch, in an order of its own each time."""

    def __init__(self, pairs: Sequence[Pair], read: Callable[[Pair], Tensor], crops: Crops) -> None:
        self.pairs, self.read, self.crops = pairs, read, crops

    def row(self, place: int) -> int:
        """Which image stands at a place."""
        epoch, position = divmod(place, len(self.pairs))
        return int(_order(self.crops.seed, epoch, len(self.pairs))[position])

    def __getitem__(self, place: int) -> Crop | DataError:
        pair = self.pairs[self.row(place)]
        try:
            return self.crops(pair.open(), self.read(pair), place=place)
        except DataError as error:  # raised where the loop can say it in one sentence
            return error


class LabelledCrops:
    """The same crops as views with the class of each pixel, for the loop that trains whole models.

    An image that cannot be read ends the run: there are few of them, and another in its place has other pixels.
    """

    def __init__(self, stream: CropStream) -> None:
        self.stream, self.source = stream, PairSource(stream.pairs)
        self.img_size, self.epoch_length = stream.crops.geometry.crop, len(stream.pairs)

    def __getitem__(self, place: int) -> Item | DataError:
        found = self.stream[place]
        if isinstance(found, DataError):
            return found
        row, (pixels, classes) = self.stream.row(place), found
        return Item(View(pixels), place, row, place, self.source.name(row), (), classes.long())


def crop_batches(stream: CropStream, *, batch_size: int, steps: range, workers: int) -> Iterator[Crop]:
    """Batches of the steps, step s holding places s * batch_size and on.

    Raises:
        DataError: If an image or annotation cannot be read.
    """
    places = [range(step * batch_size, (step + 1) * batch_size) for step in steps]
    loader = DataLoader(
        stream,
        batch_sampler=places,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),  # else the loader draws a number from the global one
        worker_init_fn=begin_worker,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def distorted(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) with other brightness, contrast, saturation and hue, each half of the time.

    Up to 32 of 255 brighter or darker, contrast and saturation by 0.5 to 1.5, hue by 18 of 180 degrees as OpenCV counts
    them; contrast comes before or after the colours (mmsegmentation's PhotoMetricDistortion).
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = rng.uniform(-18, 18) / 180 if rng.random() < 0.5 else 0.0
    comes_first = rng.random() < 0.5
    pixels = _eight_bit(pixels + np.float32(brightness))
    pixels = _eight_bit(pixels * np.float32(contrast)) if comes_first else pixels
    if saturation != 1 or hue:
        colours = np.array(Image.fromarray(pixels).convert("HSV"))
        colours[..., 1] = _eight_bit(colours[..., 1] * np.float32(saturation))
        colours[..., 0] += np.uint8(round(hue * 256) % 256)  # a circle
        pixels = np.asarray(Image.fromarray(colours, "HSV").convert("RGB"))
    return pixels if comes_first else _eight_bit(pixels * np.float32(contrast))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return numpy_generator(seed, "dense order", epoch).permutation(count)


def _cut(length: int, size: int, rng: np.random.Generator) -> slice:
    start = int(rng.integers(max(length - size, 0) + 1))
    return slice(start, min(start + size, length))


def _nearest(where: slice, scaled: int, length: int) -> Tensor:
    """Which of `length` pixels lies under each of `scaled`."""
    return ((torch.arange(where.start, where.stop) + 0.5) * length / scaled).long().clamp(max=length - 1)


def _is_varied(cut: Tensor) -> bool:
    counts = torch.bincount(cut[cut != VOID].flatten().long())
    return bool(len(counts)) and int(counts.max()) < _MOST * int(counts.sum())


def _resized(image: EncodedImage, scaled: tuple[int, int], rows: slice, columns: slice) -> Image.Image:
    """The window of the scaled image, in one resampling."""
    (width, height), (tall, wide) = image.size, scaled
    box = (
        columns.start * width / wide,
        rows.start * height / tall,
        min(columns.stop * width / wide, width),
        min(rows.stop * height / tall, height),
    )
    return image.resized(box, (columns.stop - columns.start, rows.stop - rows.start))


def _padded(pixels: NDArray[np.uint8], size: int, colour: tuple[int, ...]) -> Tensor:
    canvas = np.full((size, size, 3), colour, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()


def _padded_map(cut: Tensor, size: int, void: int) -> Tensor:
    canvas = cut.new_full((size, size), void)
    canvas[: cut.shape[0], : cut.shape[1]] = cut
    return canvas


def _eight_bit(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(values.clip(0, 255), dtype=np.uint8)


def _collate(crops: list[Crop | DataError]) -> Crop | DataError:
    error = next((crop for crop in crops if isinstance(crop, DataError)), None)
    if error is not None:
        return error
    images, targets = zip(*(crop for crop in crops if not isinstance(crop, DataError)), strict=True)
    return torch.stack(images), torch.stack(targets)
