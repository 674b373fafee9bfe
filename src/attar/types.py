"""What travels between rooms: tokens, batches, a step's outcome, statistics of images, who may evaluate a backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
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


@dataclass(frozen=True)
class BadFile:
    """A sample that could not be decoded, and why."""

    sample: int
    name: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """Views of images for one step on one rank.

    Attributes:
        views: (B, 3, H, W) float32, RGB in [0, 1] (noise from random erasing may leave the interval).
        samples: (B,) int64, rows of the sorted index.
        view_ids: (B,) int64, which view of that sample this is.
        positions: (B,) int64, positions in the step's global batch; masks derive from them.
        step: The optimizer step this batch belongs to, from 0.
        global_batch_size: Views in this step over all ranks and micro-batches.
        names: File names of the samples, for messages.
        bad_files: Samples that could not be decoded and were replaced.
        labels: (B,) int64 classes of the samples or (B, H, W) of their pixels, None where the method wants none.
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

    def to(self, device: torch.device) -> Batch:
        """The batch with views and labels on `device`."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return replace(self, views=self.views.to(device, non_blocking=True), labels=labels)


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
