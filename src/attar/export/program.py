"""A model as one traced program: images of a fixed size in, named tensors out, in batches of any size."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from attar.config.export import Output
from attar.errors import ConfigError, ExportError, first_line
from attar.models import Backbone, TaskModel
from attar.models.features import read_tokens
from attar.models.tower import Tower

_EXAMPLES = 2  # images to trace with; of one, the batch would be taken for fixed


class Deployed(nn.Module):
    """What a file computes, float32 on the CPU.

    Attributes:
        outputs: Names of what `forward` returns, in order.
        normalises: Whether images come as uint8 (B, S, S, 3), RGB; else as float32 (B, 3, S, S), normalised.
        img_size: Height and width S of an image, in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Backbone | TaskModel, outputs: Sequence[Output], *, normalises: bool) -> None:
        super().__init__()
        backbone = copy.deepcopy(model if isinstance(model, Backbone) else model.backbone).cpu().float().eval()
        self.model: Any = backbone.model.requires_grad_(False)
        self.head = None if isinstance(model, Backbone) else copy.deepcopy(model.head).cpu().float().eval()
        if "logits" in outputs and self.head is None:
            raise ConfigError(
                f"outputs name logits, and {backbone.source.name} has no classes. Ask for embedding or patch_tokens."
            )
        self.outputs, self.normalises, self.img_size = tuple(outputs), normalises, backbone.img_size
        self.name, self.embeds_itself = backbone.source.name, isinstance(backbone.model, Tower)
        self.register_buffer("mean", backbone.mean.clone(), persistent=False)
        self.register_buffer("std", backbone.std.clone(), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs: `embedding` (B, E), `patch_tokens` (B, N, D), `logits` (B, K) or (B, K, h, w)."""
        pixels = image
        if self.normalises:
            pixels = (image.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        found: dict[str, Tensor] = {}
        if self.embeds_itself and "embedding" in self.outputs:
            found["embedding"] = self.model.embed(pixels)
        if set(self.outputs) - set(found):
            tokens = read_tokens(self.model, pixels, self.name)
            found = {"embedding": tokens.cls, "patch_tokens": tokens.patch, **found}
            if self.head is not None:
                found["logits"] = self.head(tokens)
        return tuple(found[name] for name in self.outputs)

    def example(self) -> Tensor:
        """Grey images of the kind that `forward` takes."""
        size = self.img_size
        if self.normalises:
            return torch.full((_EXAMPLES, size, size, 3), 128, dtype=torch.uint8)
        return torch.zeros(_EXAMPLES, 3, size, size)


@torch.no_grad()
def traced(module: nn.Module, example: Tensor) -> ExportedProgram:
    """The module as a program of torch.export whose first axis is of any length.

    Raises:
        ExportError: If torch cannot trace it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},), strict=False)
    except Exception as error:  # torch.export raises many kinds; each means that this model has no such program
        raise ExportError(
            f"torch.export cannot trace {getattr(module, 'name', 'the model')} ({first_line(error)}). Models whose"
            " Python code looks at values, or at the number of images, have no program. Try --to timm, or a plain ViT."
        ) from error


def save_program(file: Path, program: ExportedProgram) -> None:
    """Write a `.pt2` file, which torch alone runs: `torch.export.load(file).module()(images)`."""
    torch.export.save(program, file)
