"""A backbone with the head of a task: images in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from attar.models.backbone import Backbone, evaluating
from attar.models.heads import ClassificationHead
from attar.models.pixel_heads import DeepLab, PixelClassifier, PixelHead, Tap
from attar.types import Tokens

HeadKind = Literal["linear", "deeplabv3"]


class ClassHead(ClassificationHead):
    """A linear classifier of the class token, or of what a model pools in its place. Tokens to (B, K)."""

    def forward(self, tokens: Tokens) -> Tensor:  # type: ignore[override]
        """(B, K)."""
        return super().forward(tokens.cls)


class TaskModel(nn.Module):
    """What solves a task: an adapted teacher, a student.

    Attributes:
        backbone: Images to tokens.
        head: Tokens to logits.
        class_names: Of the logits, in order.
        task: Which one, by name.
        head_kind: Of the head.
        short_side: Segmentation: pixels to which images are resized before they are looked at; None for their own size.
        stride: Segmentation: pixels from one window of an image to the next.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        class_names: Sequence[str],
        *,
        task: str = "classification",
        head_kind: HeadKind = "linear",
        short_side: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.class_names = backbone, head, tuple(class_names)
        self.task, self.head_kind, self.short_side = task, head_kind, short_side
        self.stride = stride or max(1, 2 * backbone.img_size // 3)

    @classmethod
    def classifier(cls, backbone: Backbone, class_names: Sequence[str]) -> TaskModel:
        """With a new linear head on the backbone's device, initialised by torch's global generator."""
        head = ClassHead(backbone.embed_dim, len(class_names)).to(backbone.mean.device)
        return cls(backbone, head, class_names)

    @classmethod
    def segmenter(
        cls,
        backbone: Backbone,
        class_names: Sequence[str],
        *,
        head: HeadKind = "linear",
        short_side: int | None = None,
        stride: int | None = None,
    ) -> TaskModel:
        """With a new head on patch tokens, as `classifier`; logits are (B, K, h, w) on the backbone's grid.

        Raises:
            ConfigError: If a DeepLabV3 head is asked for and segmentation-models-pytorch is not installed.
        """
        if head == "linear":
            layers: nn.Module = PixelClassifier(backbone.embed_dim, len(class_names))
        else:
            layers = DeepLab(Tap(backbone.embed_dim, backbone.grid), len(class_names), stride=backbone.patch_size)
        placed = PixelHead(layers).to(backbone.mean.device)
        return cls(
            backbone,
            placed,
            class_names,
            task="segmentation",
            head_kind=head,
            short_side=short_side,
            stride=stride,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images (B, 3, H, W), RGB in [0, 1], with gradient and in the module's current mode."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits for inference: no gradient, eval mode for the call, float32 out; images as in `Backbone.tokens`."""
        with evaluating(self):
            found: Tensor = self.head(self.backbone.tokens(images))
        return found.float()
