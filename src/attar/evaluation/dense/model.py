"""A head on a backbone: what it looks at, whether the backbone learns too, and which parameter learns how fast."""

from __future__ import annotations

import copy
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.view import View
from attar.models import Backbone
from attar.types import Tokens


class DenseModel(nn.Module):
    """Predictions for every pixel of images of the backbone's size.

    A frozen backbone stands beside the module tree and stays in eval mode; one that learns is a copy within it, so that
    the caller's keeps its weights. `state_dict` is what learns.

    Args:
        backbone: A model of attar's.
        head: From `Tokens` of each tap to maps; the first is the prediction, others help it to learn.
        view: Which tokens it looks at.
        fine_tune: Whether the backbone learns.
        drop_path: See `drop_paths`.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, view: View, *, fine_tune: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.head, self.view = head, view
        self.backbone = copy.deepcopy(backbone).requires_grad_(True) if fine_tune else None
        self._frozen: tuple[Backbone, ...] = () if fine_tune else (backbone,)  # a tuple, which no module looks into
        if self.backbone is not None:
            drop_paths(self.backbone.model, drop_path)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, K, S, S) for images (B, 3, S, S), uint8 or in [0, 1]."""
        size = images.shape[-2:]
        return [F.interpolate(found, size=size, mode="bilinear") for found in self.head(self._tokens(images))]

    def _tokens(self, images: Tensor) -> list[Tokens]:
        if self.backbone is None:
            return self.view.tokens(self._frozen[0], images)
        return self.view.learning_tokens(self.backbone, images)


def drop_paths(model: nn.Module, rate: float) -> None:
    """Drop residual branches of a model while it is trained, from none in the first block to `rate` in the last."""
    places: list[tuple[Any, str]] = [
        (module, name)
        for module in model.modules()
        for name, child in module.named_children()
        if name.startswith("drop_path") and isinstance(child, nn.Identity | DropPath)
    ]
    for number, (module, name) in enumerate(places if rate else []):
        setattr(module, name, DropPath(rate * number / max(len(places) - 1, 1)))


def parameter_groups(model: DenseModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups for AdamW with `lr_scale`, their share of the learning rate; norms and biases do not decay."""
    groups: list[dict[str, Any]] = param_groups_weight_decay(model.head, recipe.weight_decay)
    if model.backbone is not None:
        groups += _backbone_groups(model.backbone.model, recipe)
    return [{"lr_scale": 1.0} | group for group in groups if len(group["params"])]


def _backbone_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    said: Any = getattr(model, "no_weight_decay", tuple)
    spared = said()
    if recipe.layer_decay is not None:
        groups = param_groups_layer_decay(model, recipe.weight_decay, spared, layer_decay=recipe.layer_decay)
    else:
        groups = param_groups_weight_decay(model, recipe.weight_decay, spared)
    return [group | {"lr_scale": recipe.backbone_lr * group.get("lr_scale", 1.0)} for group in groups]
