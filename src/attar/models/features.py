"""What models return, read as `Tokens`: sequences of transformers, maps of conv nets, a module's own output."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.errors import ModelReferenceError
from attar.types import Tokens


def read_tokens(model: Any, pixels: Tensor, name: str) -> Tokens:
    """Run a model on normalised pixels (B, 3, H, W) and read what it returns as `Tokens`.

    Raises:
        ModelReferenceError: If the output is of a kind that carries no patch tokens.
    """
    if not hasattr(model, "forward_features"):
        return _from_own_output(model(pixels), pixels, name)
    features = model.forward_features(pixels)
    if isinstance(features, Tensor) and features.ndim == 3:
        return _from_sequence(model, features, _grid_of(model, pixels, features.shape[1] - _num_prefix(model), name))
    if isinstance(features, Tensor) and features.ndim == 4:
        return _from_map(model, features)
    return _from_own_output(features, pixels, name)


def read_intermediates(model: Any, pixels: Tensor, layers: list[int], *, norm: bool, embed_dim: int) -> list[Tokens]:
    """Tokens after chosen blocks or stages of a timm model, by its `forward_intermediates`.

    Args:
        model: Of timm.
        pixels: (B, 3, H, W), normalised.
        layers: Sorted indices from 0.
        norm: Apply the final norm to each.
        embed_dim: Width of the model's own tokens.
    """
    options: dict[str, Any] = {"indices": layers, "norm": norm, "intermediates_only": True, "output_fmt": "NCHW"}
    known = inspect.signature(model.forward_intermediates).parameters
    if getattr(model, "num_prefix_tokens", 0) and "return_prefix_tokens" in known:  # others fail when asked for it
        options["return_prefix_tokens"] = True
    found = model.forward_intermediates(pixels, **options)
    return [_read_intermediate(model, item, norm=norm, embed_dim=embed_dim) for item in found]


def map_tokens(image: Tensor) -> Tokens:
    """A map (B, D, h, w) as `Tokens`, `cls` being its mean."""
    patch = image.flatten(2).transpose(1, 2)  # (B, N, D)
    return Tokens(patch.mean(1), patch, (image.shape[2], image.shape[3]), patch[:, :0])


def _read_intermediate(model: Any, found: Any, *, norm: bool, embed_dim: int) -> Tokens:
    """One layer of timm's `forward_intermediates` as `Tokens`: a map (B, D, h, w), or the map and its prefix tokens.

    Where the model hands out no class token of that layer, `cls` is the mean of its patches. With `norm`, a sequence
    model pools for itself, so that its last layer equals what `read_tokens` says.
    """
    features, prefix = found if isinstance(found, tuple) else (found, None)
    grid = (features.shape[2], features.shape[3])
    patch = features.flatten(2).transpose(1, 2)  # (B, N, D)
    prefix = patch[:, :0] if prefix is None else prefix
    is_sequence = hasattr(model, "num_prefix_tokens") and prefix.shape[1] == _num_prefix(model)
    if norm and is_sequence and patch.shape[-1] == embed_dim:
        return _from_sequence(model, torch.cat([prefix, patch], dim=1), grid)
    num_cls = int(prefix.shape[1] > 0 and _has_cls(model))
    return Tokens(prefix[:, 0] if num_cls else patch.mean(1), patch, grid, prefix[:, num_cls:])


def _from_sequence(model: Any, features: Tensor, grid: tuple[int, int]) -> Tokens:
    """(B, prefix + N, D) of transformers: ViT, DeiT, EVA and DINOv3 (rotary), with or without registers."""
    num_prefix, num_cls = _num_prefix(model), int(_has_cls(model))
    norm = _late_norm(model, features.shape[-1])
    normed = features if norm is None else norm(features)
    patch = normed[:, num_prefix:]
    cls = normed[:, 0] if num_cls else _pooled(model, features, patch)
    return Tokens(cls, patch, grid, normed[:, num_cls:num_prefix])


def _from_map(model: Any, features: Tensor) -> Tokens:
    """(B, D, h, w), or (B, h, w, D) of models that say so: conv nets, hybrids, Swin."""
    is_channels_last = str(getattr(model, "output_fmt", "NCHW")).endswith("NHWC")
    image = features.permute(0, 3, 1, 2) if is_channels_last else features  # (B, D, h, w)
    norm = _late_norm(model, image.shape[1])
    if norm is not None and "2d" in type(norm).__name__:  # ConvNeXt keeps its final norm behind the pooling
        image = norm(image)
    elif norm is not None:
        image = norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    patch = image.flatten(2).transpose(1, 2)  # (B, N, D)
    return Tokens(_pooled(model, features, patch), patch, (image.shape[2], image.shape[3]), patch[:, :0])


def _from_own_output(output: Any, pixels: Tensor, name: str) -> Tokens:
    """Tokens from what a user's own module returned."""
    if isinstance(output, Tokens):
        return output
    if isinstance(output, dict) and {"x_norm_clstoken", "x_norm_patchtokens"} <= set(output):
        patch = output["x_norm_patchtokens"]
        grid = _grid_of(None, pixels, patch.shape[1], name)
        return Tokens(output["x_norm_clstoken"], patch, grid, output.get("x_norm_regtokens", patch[:, :0]))
    if isinstance(output, Tensor) and output.ndim == 4:
        return map_tokens(output)
    shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ModelReferenceError(
        f"{name} returned {shape}. A module must return attar.Tokens, a map (B, D, h, w),"
        " or a dictionary with x_norm_clstoken and x_norm_patchtokens."
        " A factory of your own can wrap it (module:package.mod:factory)."
    )


def _has_cls(model: Any) -> bool:
    return getattr(model, "cls_token", None) is not None


def _num_prefix(model: Any) -> int:
    """Tokens before the patches. Models that do not count them (XCiT, VOLO) have their class token alone."""
    return int(getattr(model, "num_prefix_tokens", _has_cls(model)))


def _pooled(model: Any, features: Tensor, patch: Tensor) -> Tensor:
    """The model's own pooling, or the mean of its patches where the head has a hidden layer of another width."""
    if hasattr(model, "forward_head"):
        pooled = model.forward_head(features, pre_logits=True)
        if pooled.shape == (patch.shape[0], patch.shape[-1]):
            return pooled  # type: ignore[no-any-return]
    return patch.mean(1)


def _late_norm(model: Any, width: int) -> nn.Module | None:
    """The final norm of models that keep it behind their pooling: timm's `fc_norm`, or a norm in the head."""
    if isinstance(getattr(model, "norm", None), nn.Identity):
        norm = getattr(model, "fc_norm", None)
    else:
        norm = getattr(getattr(model, "head", None), "norm", None)
    weight = getattr(norm, "weight", None)
    is_ours = isinstance(norm, nn.Module) and not isinstance(norm, _BatchNorm)
    return norm if is_ours and weight is not None and weight.shape == (width,) else None


def _grid_of(model: Any, pixels: Tensor, count: int, name: str) -> tuple[int, int]:
    """Rows and columns of `count` patch tokens: what the model says, else the grid with the image's proportions."""
    height, width = pixels.shape[-2:]
    patch_embed: Any = getattr(model, "patch_embed", None)
    if hasattr(patch_embed, "dynamic_feat_size"):
        rows, columns = patch_embed.dynamic_feat_size((height, width))
        if rows * columns == count:
            return int(rows), int(columns)
    rows = round(math.sqrt(max(count, 0) * height / width))
    columns = count // max(rows, 1)
    if min(rows, columns) < 1 or rows * columns != count or height // rows != width // columns:
        raise ModelReferenceError(
            f"{name} hands out {count} patch tokens for an image of {height}x{width} px, which form no grid."
            " attar needs a model whose last features are patch tokens or a map."
        )
    return rows, columns
