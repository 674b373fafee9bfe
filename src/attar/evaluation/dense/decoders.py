"""UPerNet and DPT on a backbone's tokens; the decoders are those of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.models.pixel_heads import Tap, decoder_class, map_of
from attar.types import Tokens

_AUXILIARY = 256  # channels of the head that helps UPerNet to learn
_WIDTH = 256  # channels within DPT
_STRIDE = 16  # tells DPT to enlarge a plain model's four maps by 4, 2, 1 and 1/2, whatever its patch size
_STRIDES = [4, 8, 16, 32]  # tells it to leave those of a conv net as they are


class UPerNet(nn.Module):
    """Logits (B, K, 4h, 4w) of UPerNet's decoder, and those of an auxiliary head while it learns.

    The maps of a plain transformer, all of one size, are brought to 4, 2, 1 and 1/2 times that by transposed
    convolutions and pooling; those of a conv net stay. The auxiliary head is one 3 x 3 convolution on the third map.

    Args:
        taps: Four.
        num_classes: K.
        channels: Within the decoder; Proteus takes the backbone's width.
    """

    def __init__(self, taps: Sequence[Tap], num_classes: int, *, channels: int) -> None:
        super().__init__()
        widths = [tap.width for tap in taps]
        self.pyramid = _pyramid(widths) if _is_plain(taps) else nn.ModuleList(nn.Identity() for _ in taps)
        decoder = decoder_class("upernet", "UPerNetDecoder")
        self.decoder = decoder([0, 0, *widths], encoder_depth=len(widths) + 1, decoder_channels=channels)
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = _one_convolution(widths[2], num_classes)

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        """The prediction; in training the auxiliary one too."""
        maps = [scale(map_of(layer)) for scale, layer in zip(self.pyramid, tokens, strict=True)]
        found = [self.classify(self.decoder([None, None, *maps]))]
        return [*found, self.auxiliary(maps[2])] if self.training else found


class Dpt(nn.Module):
    """Depth (B, 1, H, W) in metres of DPT's decoder, between 0 and `farthest`.

    The class token of each block is projected into its patches; channels of the four maps are D/8, D/4, D/2 and D
    (Proteus). The decoder doubles a map four times, so a grid with an odd side is continued by one row or column, which
    is cut off in the end.

    Args:
        taps: Four.
        farthest: Metres that the output stays below.
    """

    def __init__(self, taps: Sequence[Tap], *, farthest: float) -> None:
        super().__init__()
        self.farthest, self.is_plain = farthest, _is_plain(taps)
        self.decoder = decoder_class("dpt", "DPTDecoder")(
            encoder_out_channels=[tap.width for tap in taps],
            encoder_output_strides=[_STRIDE] * 4 if self.is_plain else _STRIDES,
            intermediate_channels=[max(1, tap.width * 2**place // 8) for place, tap in enumerate(taps)],
            fusion_channels=_WIDTH,
        )
        self.regress = decoder_class("dpt", "DPTSegmentationHead")(_WIDTH, 1)

    def forward(self, tokens: list[Tokens]) -> list[Tensor]:
        """One map."""
        maps, (height, width) = self._even([map_of(layer) for layer in tokens])
        found = self.regress(self.decoder(maps, [layer.cls[:, None] for layer in tokens]))
        share = height / maps[0].shape[-2], width / maps[0].shape[-1]
        rows, columns = (round(side * part) for side, part in zip(found.shape[-2:], share, strict=True))
        return [self.farthest * torch.sigmoid(found[..., :rows, :columns])]

    def _even(self, maps: list[Tensor]) -> tuple[list[Tensor], tuple[int, int]]:
        """Maps that halve without a rest, and which part of the first is the image."""
        height, width = maps[0].shape[-2:]
        if self.is_plain:
            return [F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") for x in maps], (height, width)
        rows, columns = maps[-1].shape[-2:]
        sizes = [(rows * 2**power, columns * 2**power) for power in (3, 2, 1, 0)]
        return [F.interpolate(x, size, mode="bilinear") for x, size in zip(maps, sizes, strict=True)], sizes[0]


def _is_plain(taps: Sequence[Tap]) -> bool:
    """Whether all maps have one size, as those of a transformer without stages."""
    return len({tap.grid for tap in taps}) == 1


def _pyramid(widths: Sequence[int]) -> nn.ModuleList:
    """4, 2, 1 and 1/2 times the size, as BEiT's and MAE's segmentation do it."""
    four, two, _, _ = (_doubled(width) for width in widths)
    again = nn.Sequential(four, nn.BatchNorm2d(widths[0]), nn.GELU(), _doubled(widths[0]))
    return nn.ModuleList([again, two, nn.Identity(), nn.MaxPool2d(2)])


def _doubled(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width, 2, stride=2)


def _one_convolution(width: int, num_classes: int) -> nn.Module:
    convolution = nn.Conv2d(width, _AUXILIARY, 3, padding=1, bias=False)
    classify = nn.Conv2d(_AUXILIARY, num_classes, 1)
    return nn.Sequential(convolution, nn.BatchNorm2d(_AUXILIARY), nn.ReLU(), nn.Dropout2d(0.1), classify)
