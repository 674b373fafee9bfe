"""Depth: DINOv2's linear heads, and DPT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from attar.data.geometry import Geometry
from attar.evaluation.dense.decoders import Dpt
from attar.evaluation.dense.heads import DepthBins
from attar.evaluation.dense.protocol import TrainedProbe
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.segmentation import proteus_layers
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.targets import Depth
from attar.evaluation.dense.view import quarters
from attar.evaluation.depth import NYU_RANGE, gradient_loss, sig_loss, silog_loss
from attar.models import Backbone
from attar.models.pixel_heads import Tap
from attar.types import Statistics

_HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of NYUv2's images in Proteus (spec evaluation, trap 11)
_MEAN_ONLY = 100  # first steps in which DINOv2's loss sees the mean alone
_SMALL = 384  # width up to which Proteus learns faster


class DepthProbe(TrainedProbe):
    """DINOv2's linear depth head on frozen tokens: `lin4` on the ends of the model's quarters, `lin1` on one layer.

    `--dense.layers -1` makes it `lin1`.
    """

    departures = (
        "lr of DINOv3 and a weight decay of 0.01: DINOv2's are not known",
        "square crops and sliding windows, where the paper takes 416 x 544 px and whole padded images",
        "photometric distortion as in segmentation, no rotation, no cut of NYUv2's white border",
        "gradient loss of Li and Snavely on four scales",
    )

    def paper(self, backbone: Backbone) -> Recipe:
        """DINOv2's numbers."""
        return Recipe(
            Geometry(backbone.img_size, 2 * backbone.img_size // 3, mirror=True),
            steps=38_400,
            lr=3e-4,
            weight_decay=0.01,
            warmup_steps=12_800,
            schedule="cosine",
            clip_norm=35.0,
            layers=dinov2_layers(backbone.depth),
            norm=True,
            scales=(1.0, 1.0),
        )

    def paper_size(self, patch_size: int) -> int:
        """Whole patches in the 480 px of NYUv2's short side."""
        return 480 // patch_size * patch_size

    def target(self, splits: DenseSplits, recipe: Recipe) -> Depth:
        """Depth, learned by SigLog and half the gradient loss."""
        alone = min(_MEAN_ONLY, recipe.warmup_steps)  # a short training must come to the rest, too
        return Depth(partial(_sig_and_gradient, alone=alone), splits.max_depth, splits.eigen)

    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """Bins over the range of depth."""
        return DepthBins(taps, nearest=NYU_RANGE[0], farthest=splits.max_depth)


class DptProbe(TrainedProbe):
    """DPT on four blocks of a frozen backbone, as in Proteus' column "linear"; `--dense.fine-tune true` trains both.

    In paper mode the moment with the least error on `test` is reported, as Proteus does.
    """

    paper_choice = "test"
    departures = (
        "batch size 16 in all: the paper gives it for one GPU and not how many there were",
        "images resized to the crop by their short side, photometric distortion as in segmentation, no depth-mix",
        "depth is max_depth times a sigmoid; of moments, --dense.moments are judged",
    )

    def paper(self, backbone: Backbone) -> Recipe:
        """Proteus' numbers on NYUv2."""
        size = backbone.img_size
        return Recipe(
            Geometry(size, size // 4, short_side=size, mirror=True),
            steps=25_000,
            lr=4e-4 if backbone.embed_dim <= _SMALL else 1e-4,
            weight_decay=0.01,
            warmup_steps=1500,
            layers=proteus_layers(backbone.depth),
            backbone_lr=0.1,
            scales=(0.8, 1.5),
            statistics=_HALF,
        )

    def target(self, splits: DenseSplits, recipe: Recipe) -> Depth:
        """Depth, learned by SiLog."""
        return Depth(_silog, splits.max_depth, splits.eigen)

    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """DPT."""
        return Dpt(taps, farthest=splits.max_depth)


def dinov2_layers(depth: int) -> tuple[int, ...]:
    """The four blocks of DINOv2's `lin4`, from 0: ends of the quarters, but for 24 blocks 4, 11, 17 and 23."""
    return (4, 11, 17, 23) if depth == 24 else quarters(depth)


def _sig_and_gradient(predicted: Tensor, target: Tensor, step: int, *, alone: int) -> Tensor:
    return sig_loss(predicted, target, is_warming_up=step < alone) + gradient_loss(predicted, target) / 2


def _silog(predicted: Tensor, target: Tensor, step: int) -> Tensor:
    return silog_loss(predicted, target)
