"""What a model of another library must say for itself to stand behind a `Backbone`: tokens, layers, embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from attar.types import Tokens


class Tower(nn.Module, ABC):
    """The image tower of a model of open_clip or transformers, whose forward returns `Tokens`.

    All methods take normalised pixels (B, 3, H, W).

    Attributes:
        depth: Number of blocks, or stages of a conv net.
        patch_size: Pixels per token side.
    """

    depth: int
    patch_size: int

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""

    @abstractmethod
    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after blocks `layers`, which are sorted and lie in 0 to depth - 1."""

    @property
    def patch_embed(self) -> nn.Module | None:
        """The module that embeds each patch from its own pixels alone; None where patches cannot be hidden."""
        return None

    def recompute_blocks(self) -> None:
        """Keep no activations from within blocks for the backward pass; NotImplementedError where it cannot."""
        raise NotImplementedError("its library offers no activation checkpointing")

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, E): the library's own image embedding; the class token (or pooling) where it has no projection."""
        return self.forward(pixels).cls
