"""Semantic segmentation: a linear head, UPerNet, DeepLabV3."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from attar.data.geometry import Geometry
from attar.evaluation.dense.closed_form import judge_closed_form
from attar.evaluation.dense.decoders import UPerNet
from attar.evaluation.dense.protocol import TrainedProbe
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.targets import Classes
from attar.evaluation.dense.view import View, quarters
from attar.evaluation.protocols import Score
from attar.models import Backbone
from attar.models.pixel_heads import DeepLab, PixelClassifier, Tap
from attar.types import IMAGENET

_LAYERS = {12: (3, 5, 7, 11), 24: (7, 11, 15, 23)}
_LARGE = 24  # blocks from which Proteus trains longer and drops more
_WARMUP = 1500
_BATCH = "batch size 16 in all: the paper gives it for one GPU and not how many there were"


def proteus_layers(depth: int) -> tuple[int, ...]:
    """Proteus' four blocks of a model, from 0; for depths that the paper has not, the ends of its quarters."""
    return _LAYERS.get(depth, quarters(depth))


class _Segmentation(TrainedProbe):
    """What the three have in common."""

    def target(self, splits: DenseSplits, recipe: Recipe) -> Classes:
        """Classes."""
        return Classes.of(splits)


class SegmentationProbe(_Segmentation):
    """A linear layer on frozen patch tokens.

    Honest: logistic regression on pixels of the training images, on tokens after the final norm; the penalty is chosen
    on `val`. It takes no steps: of the settings, `crop`, `stride`, `short_side` and `layers` count.

    Paper: Proteus' recipe on ADE20K, four blocks side by side without a norm, 60,000 steps of AdamW.
    """

    departures = (_BATCH,)

    def paper(self, backbone: Backbone) -> Recipe:
        """Proteus' linear recipe."""
        layers = proteus_layers(backbone.depth)
        return Recipe(_paper_geometry(backbone), 60_000, 8e-4, 0.05, _WARMUP, layers=layers, statistics=IMAGENET)

    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """One linear layer."""
        return PixelClassifier(sum(tap.width for tap in taps), splits.num_classes)

    def judge(
        self,
        backbone: Backbone,
        splits: DenseSplits,
        *,
        device: str | torch.device = "cpu",
        workers: int = 0,
        state: Path | None = None,
    ) -> Score:
        """See `DenseProtocol`."""
        if self.mode == "paper":
            return super().judge(backbone, splits, device=device, workers=workers, state=state)
        geometry = self.geometry(_paper_geometry(backbone))
        view = View.of(backbone, self.config.layers, norm=True)
        return judge_closed_form(backbone, splits, view, geometry, seed=self.seed, device=torch.device(device))


class UPerNetProbe(_Segmentation):
    """UPerNet on four maps. Honest: the backbone is frozen. Paper: Proteus' fine-tuning on ADE20K."""

    departures = (_BATCH, "the decoder of segmentation-models-pytorch normalises each map first")

    def paper(self, backbone: Backbone) -> Recipe:
        """Proteus' numbers."""
        is_large = backbone.depth >= _LARGE
        return Recipe(
            _paper_geometry(backbone),
            steps=160_000 if is_large else 60_000,
            lr=1e-4,
            weight_decay=0.05,
            warmup_steps=_WARMUP,
            layers=proteus_layers(backbone.depth),
            fine_tune=True,
            layer_decay=0.65,
            drop_path=0.2 if is_large else 0.1,
            statistics=IMAGENET,
        )

    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """UPerNet as wide as the backbone."""
        return UPerNet(taps, splits.num_classes, channels=backbone.embed_dim)


class DeepLabProbe(_Segmentation):
    """DeepLabV3 on the last map, for conv students. Honest: the backbone is frozen. Paper: it learns too.

    In both modes the best moment by `val` is taken, as task-oriented transfer does. That paper's head and schedule are
    not published, so the numbers are attar's own; so is DeepLabV3, which is said of its students from memory only.
    """

    paper_choice = "val"
    departures = ("head, schedule and sizes are attar's own: the paper does not give them",)

    def paper(self, backbone: Backbone) -> Recipe:
        """Attar's numbers."""
        return Recipe(
            _paper_geometry(backbone), 20_000, 1e-3, 0.01, 500, fine_tune=True, backbone_lr=0.1, clip_norm=1.0
        )

    def paper_size(self, patch_size: int) -> int:
        """512 px: strides of conv nets are powers of two."""
        return 512

    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """DeepLabV3."""
        return DeepLab(taps[-1], splits.num_classes, stride=backbone.patch_size)


def _paper_geometry(backbone: Backbone) -> Geometry:
    """Images resized to the input by their short side; windows that overlap by a third (518 px: every 345)."""
    return Geometry(backbone.img_size, 2 * backbone.img_size // 3, short_side=backbone.img_size)
