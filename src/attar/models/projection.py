"""A small image tower for a space that images and sentences share: any timm model and a projection into it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Backbone
from attar.models.open_clip import TimmTower
from attar.models.tower import Tower
from attar.utils.seeding import seeded_torch


class ProjectedTrunk(nn.Module):
    """A timm model without classifier, and a bias-free projection of what it pools.

    Its state dict is that of open_clip's `TimmModel` with `timm_proj` linear, so that the student ships as one.
    """

    def __init__(self, trunk: Any, embed_dim: int) -> None:
        super().__init__()
        self.trunk = trunk
        projection = nn.Linear(trunk.num_features, embed_dim, bias=False)
        nn.init.normal_(projection.weight, std=trunk.num_features**-0.5)  # as CLIP's
        self.head = nn.Sequential(OrderedDict(proj=projection))

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, E) of normalised pixels (B, 3, H, W)."""
        return self.head(self.trunk(pixels))  # type: ignore[no-any-return]


def with_projection(backbone: Backbone, embed_dim: int, *, seed: int = 0) -> Backbone:
    """The timm backbone as an image tower: `embed` gives its pooled features, projected; tokens stay what they are.

    Args:
        backbone: One of timm, on the CPU; its model becomes a part of the new one.
        embed_dim: Width E of the shared space.
        seed: Names the initialisation of the projection.

    Raises:
        ModelReferenceError: If the model is not timm's, or pools into another width than its tokens have.

    Example:
        >>> import torch
        >>> from attar.models import load_backbone
        >>> tower = with_projection(load_backbone("vit_tiny_patch16_224?depth=1", weights="random", img_size=32), 64)
        >>> tower.embed(torch.rand(2, 3, 32, 32)).shape, tower.embed_dim
        (torch.Size([2, 64]), 192)
    """
    trunk: Any = backbone.model
    if isinstance(trunk, Tower) or not hasattr(trunk, "feature_info"):
        raise ModelReferenceError(
            f"{backbone.source.name} is no model of timm, and the image tower of a small CLIP must be one:"
            " open_clip loads no other. Try vit_base_patch32_224."
        )
    if getattr(trunk, "head_hidden_size", trunk.num_features) != trunk.num_features:
        raise ModelReferenceError(
            f"{backbone.source.name} pools {trunk.num_features} channels into {trunk.head_hidden_size}, which"
            " open_clip's image towers do not. Try a model without a hidden layer in its head (a ViT, ConvNeXt, Swin)."
        )
    with seeded_torch(seed, "projection"):
        tower = TimmTower(ProjectedTrunk(trunk, embed_dim))
    tower.train(trunk.training)
    weights = backbone.source.weights
    source = backbone.source if weights == "random" else replace(backbone.source, weights=f"{weights}, projected")
    return Backbone(tower, img_size=backbone.img_size, preprocess=backbone.preprocess, source=source)
