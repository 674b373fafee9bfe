"""What travels between rooms: tokens, batches, a step's outcome, statistics of images, who may evaluate a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation of the channels of RGB images in [0, 1]."""

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet's images: most models normalise by them, and random erasing fills with them."""


@dataclass(frozen=True)
class Tokens:
    """What a backbone says about a batch of images, after its final norm.

    Attributes:
        cls: (B, D). The class token before any projection; where a model has none, its own pooling.
        patch: (B, N, D). Patch tokens, or the positions of the final map of a conv net, row by row.
        grid: (h, w) with h * w == N.
        prefix: (B, R, D). Register tokens; R is 0 for most models.
    """

    cls: Tensor
    patch: Tensor
    grid: tuple[int, int]
    prefix: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Tokens:
        """The same tokens with `function` applied to each tensor (a cast, a move, a slice of the batch)."""
        return replace(self, cls=function(self.cls), patch=function(self.patch), prefix=function(self.prefix))


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several batches, on one grid, as those of one."""
    if len(parts) == 1:
        return parts[0]
    cls, patch, prefix = (torch.cat([getattr(part, name) for part in parts]) for name in ("cls", "patch", "prefix"))
    return Tokens(cls, patch, parts[0].grid, prefix)


@dataclass(frozen=True)
class BadFile:
    """A sample that could not be decoded, and why."""

    sample: int
    name: str
    reason: str


@dataclass(frozen=True)
class Erased:
    """What random erasing has put into the views of a batch.

    Attributes:
        boxes: (image, top, left, height, width) of each box.
        noise: Their values, one box after the other: (sum of 3 * height * width,) float32.
    """

    boxes: tuple[tuple[int, int, int, int, int], ...]
    noise: Tensor

    def fill(self, views: Tensor) -> None:
        """Put it into views (B, 3, H, W) float32, in place."""
        noise, start = self.noise.to(views.device, non_blocking=True), 0
        for image, top, left, height, width in self.boxes:
            end = start + 3 * height * width
            views[image, :, top : top + height, left : left + width] = noise[start:end].view(3, height, width)
            start = end


@dataclass(frozen=True)
class KeptRows:
    """Rows of a file, in host memory.

    Attributes:
        stored: (B, bytes of a row) uint8; rows that are not known hold anything.
        is_known: (B,) bool, False where nobody has written the row, or not the whole of it.
    """

    stored: Tensor
    is_known: NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Views of images for one step on one rank.

    A loader makes views of bytes, a quarter of what floats would take on their way; on the device they are floats.

    Attributes:
        views: (B, 3, H, W), RGB: float32 in [0, 1] (noise from random erasing may leave the interval), or uint8 before
            `to`.
        samples: (B,) int64, rows of the sorted index.
        view_ids: (B,) int64, which view of that sample this is.
        positions: (B,) int64, positions in the step's global batch; masks derive from them.
        step: The optimizer step this batch belongs to, from 0.
        global_batch_size: Views in this step over all ranks and micro-batches.
        names: File names of the samples, for messages.
        bad_files: Samples that could not be decoded and were replaced.
        labels: (B,) int64 classes of the samples or (B, H, W) of their pixels, None where the method wants none.
        erased: What `to` puts into views of bytes.
        kept: What has been read beforehand of a teacher's answers to these views.
    """

    views: Tensor
    samples: Tensor
    view_ids: Tensor
    positions: Tensor
    step: int
    global_batch_size: int
    names: tuple[str, ...] = ()
    bad_files: tuple[BadFile, ...] = ()
    labels: Tensor | None = None
    erased: Erased | None = None
    kept: KeptRows | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with views, as floats, and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        views = self.views.to(device, non_blocking=True)
        if views.dtype == torch.uint8:
            views = unit_interval(views)
            if self.erased is not None:
                self.erased.fill(views)
        return replace(self, views=views, labels=labels, erased=None)

    def pin_memory(self) -> Batch:
        """For the loader: what a GPU fetches, where it need not wait for it."""
        return replace(
            self,
            views=self.views.pin_memory(),
            labels=None if self.labels is None else self.labels.pin_memory(),
            erased=None if self.erased is None else replace(self.erased, noise=self.erased.noise.pin_memory()),
        )


def unit_interval(pixels: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1], the same numbers on every device."""
    # by a tensor of the device: for a plain number a GPU multiplies by 1 / 255, which rounds otherwise
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


@dataclass(frozen=True)
class StepOutput:
    """What one training step returns to the loop.

    Attributes:
        loss: Scalar float32 with gradient.
        terms: Unweighted loss terms by name, scalars without gradient.
    """

    loss: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)


class FrozenBackbone(Protocol):
    """The side of a backbone that evaluators may use."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def img_size(self) -> int: ...
    def tokens(self, images: Tensor) -> Tokens: ...


class Evaluator(Protocol):
    """Anything that can judge a frozen backbone, in a run or after it (after big_vision's evaluators)."""

    def run(self, backbone: FrozenBackbone) -> Iterator[tuple[str, Any]]:
        """Yield `(name, value)` pairs; values are in [0, 1] unless the name says otherwise."""
        ...
