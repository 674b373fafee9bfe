"""Heads that say a class for every pixel, linear and DeepLabV3, and what heads on patch tokens share."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.errors import ConfigError
from attar.types import Tokens

_WIDTH = 256  # channels within DeepLabV3
_REACH = 96  # pixels of DeepLabV3's smallest dilation: rates 6, 12, 18 at stride 16, twice that at 8


@dataclass(frozen=True)
class Tap:
    """Tokens of one layer: their width and grid."""

    width: int
    grid: tuple[int, int]


class PixelClassifier(nn.Module):
    """Logits (B, K, h, w) of classes from patch tokens: the maps of all layers side by side, and one linear layer.

    Args:
        width: Of all layers together.
        num_classes: K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        """One map."""
        return [self.conv(side_by_side(tokens))]


class DeepLab(nn.Module):
    """Logits (B, K, h, w) of DeepLabV3: dilated convolutions side by side on the last map.

    Dilations are those of the paper in pixels of the image (rates 6, 12 and 18 at stride 16, twice that at stride 8).

    Args:
        tap: The last map.
        num_classes: K.
        stride: Pixels of the image for one of the map.
    """

    def __init__(self, tap: Tap, num_classes: int, *, stride: int) -> None:
        super().__init__()
        rate = max(1, round(_REACH / stride))
        decoder = decoder_class("deeplabv3", "DeepLabV3Decoder")
        self.decoder = decoder(tap.width, _WIDTH, (rate, 2 * rate, 3 * rate), aspp_separable=False, aspp_dropout=0.5)
        self.classify = nn.Conv2d(_WIDTH, num_classes, 1)

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        """One map."""
        return [self.classify(self.decoder([map_of(tokens[-1])]))]


class PixelHead(nn.Module):
    """A head on the tokens of one layer as the head of a task. Tokens to (B, K, h, w).

    Args:
        layers: `PixelClassifier` or `DeepLab`.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, tokens: Tokens) -> Tensor:
        """(B, K, h, w)."""
        found: Tensor = self.layers([tokens])[0]
        return found


def map_of(tokens: Tokens) -> Tensor:
    """(B, D, h, w)."""
    return tokens.patch.transpose(1, 2).reshape(len(tokens.patch), -1, *tokens.grid)


def side_by_side(tokens: Sequence[Tokens]) -> Tensor:
    """(B, sum of D, h, w): all maps in the size of the first."""
    first, *others = [map_of(layer) for layer in tokens]
    return torch.cat([first, *(F.interpolate(x, size=first.shape[-2:], mode="bilinear") for x in others)], dim=1)


def decoder_class(family: str, name: str) -> Any:
    """A decoder of segmentation-models-pytorch.

    Raises:
        ConfigError: If that is not installed.
    """
    try:
        module = importlib.import_module(f"segmentation_models_pytorch.decoders.{family}.decoder")
    except ImportError:
        raise ConfigError(
            f"UPerNet, DeepLabV3 and DPT need segmentation-models-pytorch, which is not installed ({name})."
            ' Try, in the clone of attar: pip install ".[dense]".'
        ) from None
    return getattr(module, name)
