"""Asking a frozen teacher, and images at each model's size: what all methods do alike."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.models import Backbone, cache_sized
from attar.types import Tokens, joined


def frozen(teacher: Backbone) -> Backbone:
    """The teacher in eval mode, without gradients; no method's `train()` reaches it."""
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def ask(teacher: Backbone, views: Tensor, *, img_size: int | None = None) -> Tokens:
    """Teacher tokens of views (B, 3, H, W), at the teacher's own input size or at another that it takes.

    On a CPU it is asked about few at a time (`cache_sized`); ranks that share a sharded teacher give equally many.
    """
    return joined([teacher(few) for few in cache_sized(resize(views, img_size or teacher.img_size))])


@torch.no_grad()
def ask_embedding(teacher: Backbone, views: Tensor) -> Tensor:
    """Teacher embeddings (B, E) of views (B, 3, H, W), projected where it projects, at its own input size."""
    return torch.cat([teacher.forward_embed(few) for few in cache_sized(resize(views, teacher.img_size))])


def check_patches(student: Backbone, teacher: Backbone | None = None) -> None:
    """Refuse input sizes of which patches leave a rest: the model would drop it without a word.

    Raises:
        ShapeError: With the size to take instead.
    """
    for flag, model in (("--img-size", student), ("--teacher-img-size", teacher)):
        if model is not None and model.can_mask and model.img_size % model.patch_size:
            fitting = math.ceil(model.img_size / model.patch_size) * model.patch_size
            raise ShapeError(
                f"{model.source.name} at {model.img_size} px: patches of {model.patch_size} px leave a rest of"
                f" {model.img_size % model.patch_size} px. Try {flag} {fitting}."
            )


TokenKind = Literal["cls", "patch"]
"""Which of the `Tokens` a student learns from: the class token (B, D), or the patch tokens (B, N, D)."""


def resample_tokens(tokens: Tokens, grid: tuple[int, int]) -> Tokens:
    """Patch tokens on another grid: averaged over areas where it is coarser, bilinear where it is finer.

    An extension for students whose patches are not the teacher's; Proteus needs equal grids (spec §1.4).
    """
    if tokens.grid == grid:
        return tokens
    batch, _, dim = tokens.patch.shape
    image = tokens.patch.transpose(1, 2).reshape(batch, dim, *tokens.grid)
    image = F.interpolate(image.float(), size=grid, mode="bilinear", align_corners=False, antialias=True)
    return Tokens(tokens.cls, image.flatten(2).transpose(1, 2).to(tokens.patch.dtype), grid, tokens.prefix)


def chosen(tokens: Tokens, kind: TokenKind, *, grid: tuple[int, int]) -> Tensor:
    """(B, n, D): the class token alone, or the patch tokens on a grid."""
    return tokens.cls[:, None] if kind == "cls" else resample_tokens(tokens, grid).patch


def resize(views: Tensor, img_size: int) -> Tensor:
    """Views at another size, bicubic with antialiasing; the same tensor when it fits."""
    if views.shape[-1] == img_size:
        return views
    return F.interpolate(views, size=(img_size, img_size), mode="bicubic", antialias=True)
