"""Hiding patches from a student: masked positions carry the mask token before positions are added."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ShapeError
from attar.models.tower import Tower


def patch_embedding(model: nn.Module, patch_size: int) -> nn.Module | None:
    """The module that embeds each patch from its own pixels alone, before all of them stand in a sequence.

    None where there is none: stems whose convolutions overlap (hybrids, XCiT, MViT) let neighbours see a hidden patch.
    """
    if isinstance(model, Tower):
        return model.patch_embed
    patch_embed = getattr(model, "patch_embed", None)
    proj = getattr(patch_embed, "proj", None)
    is_sequence = isinstance(getattr(model, "num_prefix_tokens", None), int)
    is_apart = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride == (patch_size,) * 2
    return patch_embed if is_sequence and is_apart else None


class MaskedPatchEmbed:
    """A forward hook on `patch_embed` that swaps hidden patch embeddings for the mask token.

    A hook rather than a wrapping module, so that no key of the student changes and nothing is exported. Serves
    both layouts timm uses, (B, N, D) and (B, h, w, D) of models with dynamic input sizes, and the (B, D, h, w) of a
    bare convolution (transformers).
    """

    def __init__(self, patch_embed: nn.Module) -> None:
        self.masks: Tensor | None = None
        self.mask_token: Tensor | None = None
        patch_embed.register_forward_hook(self)

    @contextlib.contextmanager
    def hiding(self, masks: Tensor, mask_token: Tensor) -> Iterator[None]:
        """Hide `masks` (B, N) bool behind `mask_token` (1, D) in every forward of this block."""
        self.masks, self.mask_token = masks, mask_token
        try:
            yield
        finally:
            self.masks = self.mask_token = None

    def __call__(self, module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.masks is None or self.mask_token is None:
            return None
        is_convolution = isinstance(module, nn.Conv2d)
        if is_convolution:
            output = output.movedim(1, -1)
        batch, count = output.shape[0], output[0, ..., 0].numel()
        if self.masks.shape != (batch, count) or self.masks.dtype != torch.bool:
            raise ShapeError(
                f"masks are {tuple(self.masks.shape)} {self.masks.dtype} but the student embeds {batch} images into"
                f" {count} patches each. One bool per patch is needed: check img_size and patch_size."
            )
        output = torch.where(self.masks.reshape(*output.shape[:-1], 1), self.mask_token.to(output.dtype), output)
        return output.movedim(-1, 1) if is_convolution else output
