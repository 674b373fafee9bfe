"""What of a backbone a dense head looks at: some of its blocks, or its final tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attar.errors import ModelReferenceError
from attar.models import Backbone
from attar.models.pixel_heads import Tap
from attar.types import Tokens


@dataclass(frozen=True)
class View:
    """Tokens after chosen blocks.

    Attributes:
        layers: From 0; None for the tokens after the last block and the final norm.
        norm: Apply the final norm to each block.
    """

    layers: tuple[int, ...] | None = None
    norm: bool = False

    @classmethod
    def of(cls, backbone: Backbone, layers: Sequence[int] | None, *, norm: bool) -> View:
        """A view that the model offers: stages of conv nets have no norm."""
        view = cls(None if layers is None else tuple(layers), norm)
        if layers is None or not norm:
            return view
        try:
            view.taps(backbone)
        except ModelReferenceError:
            return cls(view.layers, norm=False)
        return view

    def tokens(self, backbone: Backbone, images: Tensor) -> list[Tokens]:
        """Tokens of a frozen backbone, without gradient."""
        if self.layers is None:
            return [backbone.tokens(images)]
        return backbone.intermediates(images, layers=list(self.layers), norm=self.norm)

    def learning_tokens(self, backbone: Backbone, images: Tensor) -> list[Tokens]:
        """The same with gradient, in the backbone's current mode."""
        if self.layers is None:
            return [backbone(images)]
        return backbone.forward_intermediates(images, layers=list(self.layers), norm=self.norm)

    def taps(self, backbone: Backbone) -> list[Tap]:
        """What a head will look at."""
        grey = torch.full((1, 3, backbone.img_size, backbone.img_size), 0.5)
        return [Tap(found.patch.shape[-1], found.grid) for found in self.tokens(backbone, grey)]


def quarters(depth: int) -> tuple[int, ...]:
    """The last blocks of the four quarters of a model, or the four stages of a conv net with or without a stem.

    Example:
        >>> quarters(12), quarters(5)
        ((2, 5, 8, 11), (1, 2, 3, 4))
    """
    return tuple(math.ceil(depth * quarter / 4) - 1 for quarter in (1, 2, 3, 4))
