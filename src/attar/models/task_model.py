"""A backbone with the head of a task: images in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attar.models.backbone import Backbone, evaluating
from attar.models.heads import ClassificationHead
from attar.types import Tokens


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
    """

    def __init__(self, backbone: Backbone, head: nn.Module, class_names: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.head, self.class_names = backbone, head, tuple(class_names)

    @classmethod
    def classifier(cls, backbone: Backbone, class_names: Sequence[str]) -> TaskModel:
        """With a new linear head on the backbone's device, initialised by torch's global generator."""
        head = ClassHead(backbone.embed_dim, len(class_names)).to(backbone.mean.device)
        return cls(backbone, head, class_names)

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
