"""What frozen backbones say of images, by the names that protocols ask for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models import Backbone, Preprocess
from attar.types import Statistics, Tokens

Output = Literal["cls", "last4", "mean_patch", "embed"]
"""An array of features, one row an image.

    cls         (n, D)     class token after the final norm, or the model's own pooling
    last4       (n, b, D)  class tokens of the last b <= 4 blocks, each after the final norm, the earliest first
    mean_patch  (n, D)     mean of the patch tokens of the last block
    embed       (n, E)     what images are searched by: projected where the model projects
"""

_BLOCKS = 4  # that linear probes look at (DINOv2)


def read_outputs(backbone: Backbone, images: Tensor, wanted: Sequence[Output]) -> dict[Output, Tensor]:
    """The wanted outputs of images (B, 3, S, S), float32 on the CPU, from as few forward passes as they need."""
    found: dict[Output, Tensor] = {}
    if {"last4", "mean_patch", "cls"} & set(wanted):
        blocks = last_blocks(backbone, images) if "last4" in wanted else [backbone.tokens(images)]
        found["last4"] = torch.stack([block.cls for block in blocks], dim=1)
        found["cls"], found["mean_patch"] = blocks[-1].cls, blocks[-1].patch.mean(1)
    if "embed" in wanted:
        found["embed"] = backbone.embed(images)
    return {name: found[name].float().cpu() for name in wanted}


def last_blocks(backbone: Backbone, images: Tensor) -> list[Tokens]:
    """Tokens of the last four blocks, or of the last one alone where a model has no four of one width (conv nets)."""
    try:
        blocks = backbone.intermediates(images, layers=list(range(-_BLOCKS, 0)), norm=True)
    except ModelReferenceError:
        return [backbone.tokens(images)]
    is_uniform = all(block.cls.shape[-1] == backbone.embed_dim for block in blocks)
    return blocks if is_uniform else [backbone.tokens(images)]


def fingerprint(backbone: Backbone) -> str:
    """Hex SHA-256 of what a backbone's answers depend on besides the pixels: its reference and weights."""
    digest = hashlib.sha256()
    about = (backbone.source.name, type(backbone.model).__qualname__, backbone.img_size)
    digest.update(json.dumps(about).encode())
    add_weights(digest, backbone.model)
    return digest.hexdigest()


def add_weights(digest: hashlib._Hash, model: nn.Module) -> None:
    """Feed all names, shapes and bytes of a state dict to a hash."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def normalising_by(backbone: Backbone, statistics: Statistics | None) -> Iterator[None]:
    """Within the block the backbone normalises images by these statistics; by its own where they are None."""
    own = backbone.preprocess
    if statistics is not None:
        backbone.normalise_with(Preprocess(*statistics))
    try:
        yield
    finally:
        backbone.normalise_with(own)
