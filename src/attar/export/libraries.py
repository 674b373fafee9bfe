"""A model as the folder of another library, and what that library's own model says once it has loaded it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from attar.errors import ConfigError
from attar.export.parity import BATCHES, Outputs
from attar.export.student import library_of, write_backbone
from attar.export.task import with_classifier
from attar.models import Backbone, Licence, TaskModel
from attar.models.transformers import TransformersTower, import_transformers, quiet

Target = Literal["timm", "transformers"]
Run = Callable[[NDArray[Any]], Outputs]


def check_library(model: Backbone | TaskModel, target: Target) -> None:
    """Refuse what the library has no place for.

    Raises:
        ConfigError: With the targets that there are.
    """
    backbone = model if isinstance(model, Backbone) else model.backbone
    own, name = library_of(backbone), backbone.source.name
    if isinstance(model, TaskModel) and (target != "timm" or own != "timm" or model.task != "classification"):
        raise ConfigError(
            f"--to {target} takes no {model.task} model on {name}: a head finds a place in timm's classifiers alone."
            " Try --to onnx, or --to torch."
        )
    if own == "attar" or (own == "transformers" and target == "timm"):
        raise ConfigError(f"--to {target} cannot take {name}, which is no model of that library. Try --to onnx.")


def write_for_library(
    folder: Path, model: Backbone | TaskModel, *, licence: Licence | None = None, crop_pct: float = 1.0
) -> None:
    """Write `config.json`, with crop and the licence of what the weights were made from, and `model.safetensors`."""
    if isinstance(model, Backbone):
        write_backbone(folder, model, licence=licence, crop_pct=crop_pct)
    else:
        whole, names = with_classifier(model), model.class_names
        write_backbone(folder, model.backbone, model=whole, label_names=names, licence=licence, crop_pct=crop_pct)


def run_by_library(folder: Path, target: Target, *, classifies: bool) -> Run:
    """What the library's model in the folder says of normalised images: features, or logits of a classifier."""
    if target == "timm":
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return lambda images: _as_outputs(
            model(_tensor(images)) if classifies else model.forward_features(_tensor(images))
        )
    library = import_transformers()
    with quiet():
        loaded = library.AutoModel.from_pretrained(folder).eval()
    if "Siglip2" not in type(loaded).__name__:
        return lambda images: _as_outputs(loaded(pixel_values=_tensor(images)).last_hidden_state)
    side = loaded.config.patch_size
    return lambda images: _as_outputs(loaded(**TransformersTower.cut(_tensor(images), side)).last_hidden_state)


@torch.no_grad()
def right_features(model: Backbone | TaskModel, images: Tensor) -> Outputs:
    """The same of attar's own model, for views (n, 3, S, S) uint8, in the batches of the comparison.

    A convolution of another number of images, or of pixels that lie otherwise in memory, sums in another order, and
    equal weights would seem to differ.
    """
    parts = [_features(model, part) for part in torch.split(images, list(BATCHES))]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _features(model: Backbone | TaskModel, images: Tensor) -> Outputs:
    if isinstance(model, TaskModel):
        return [model.logits(images).numpy()]
    pixels = ((images.float() / 255 - model.mean) / model.std).contiguous()  # as those that the library gets
    wrapped: Any = model.model
    if isinstance(wrapped, TransformersTower):
        return _as_outputs(wrapped.encoder(**wrapped.inputs(pixels)).last_hidden_state)
    return _as_outputs(wrapped.forward_features(pixels))


def _tensor(images: NDArray[Any]) -> Tensor:
    return torch.from_numpy(images).contiguous()


def _as_outputs(found: Tensor) -> Outputs:
    return [found.detach().numpy()]
