"""Image encoders of transformers behind a `Backbone`: its families, and how their outputs are read as `Tokens`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Preprocess
from attar.models.features import map_tokens
from attar.models.official import HALF, OPENAI
from attar.models.tower import Tower
from attar.types import IMAGENET, Statistics, Tokens

_OLDEST = (5, 6)  # older ones name the parts of clip and siglip otherwise


@dataclass(frozen=True)
class Family:
    """What transformers' own configuration does not say of a family.

    Attributes:
        model: Class of its image encoder.
        statistics: Mean and std of the images, where the directory does not say.
        norm: Name of the final norm.
        patch_embed: Path of the module that embeds each patch by itself; None for a conv net.
        has_cls: Whether the sequence begins with a class token. Else `cls` is what the model pools.
        returns_normed: Whether the final norm has been applied to what the model returns.
        takes_patches: Whether the model is given patches in place of images.
        has_dinov2_positions: Position tables are resampled as DINOv2's own code does, else as transformers does.
        arguments: For the constructor.
    """

    model: str
    statistics: Statistics
    norm: str
    patch_embed: str | None
    has_cls: bool = True
    returns_normed: bool = True
    takes_patches: bool = False
    has_dinov2_positions: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "dinov2": Family("Dinov2Model", IMAGENET, "layernorm", "embeddings.patch_embeddings", has_dinov2_positions=True),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", IMAGENET, "layernorm", "embeddings.patch_embeddings", has_dinov2_positions=True
    ),
    "dinov3_vit": Family("DINOv3ViTModel", IMAGENET, "norm", "embeddings.patch_embeddings"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", IMAGENET, "layer_norm", None),
    "vit": Family("ViTModel", HALF, "layernorm", "embeddings.patch_embeddings", arguments={"add_pooling_layer": False}),
    "clip_vision_model": Family(
        "CLIPVisionModel", OPENAI, "post_layernorm", "embeddings.patch_embedding", returns_normed=False
    ),
    "siglip_vision_model": Family(
        "SiglipVisionModel", HALF, "post_layernorm", "embeddings.patch_embedding", has_cls=False
    ),
    "siglip2_vision_model": Family(
        "Siglip2VisionModel", HALF, "post_layernorm", "embeddings.patch_embedding", has_cls=False, takes_patches=True
    ),
}


class TransformersTower(Tower):
    """An image encoder of transformers: its sequence as `Tokens`, CLIP's with the projection of its embeddings."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family
        config = self.encoder.config
        self.depth = len(config.hidden_sizes) if family.patch_embed is None else config.num_hidden_layers
        self.patch_size = 32 if family.patch_embed is None else config.patch_size
        self.num_prefix = int(family.has_cls) + getattr(config, "num_register_tokens", 0)
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token") or name.startswith("visual_projection"):
                parameter.requires_grad_(False)  # tokens do not pass it, so that it would never get a gradient

    @property
    def encoder(self) -> Any:
        """The image encoder without projection."""
        return getattr(self.model, "vision_model", self.model)

    @property
    def patch_embed(self) -> nn.Module | None:
        """The module that embeds each patch from its own pixels alone."""
        path = self.family.patch_embed
        return self.encoder.get_submodule(path) if path else None

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""
        sequence = self.encoder(**self.inputs(pixels)).last_hidden_state
        sequence = sequence if self.family.returns_normed else self._norm(sequence)
        return self._read(sequence, self._grid(pixels), is_normed=True)

    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after chosen blocks, or stages of a conv net."""
        states = self.encoder(**self.inputs(pixels), output_hidden_states=True).hidden_states[1:]  # 0 is the input
        return [self._read_state(states[layer], self._grid(pixels), norm=norm) for layer in layers]

    def recompute_blocks(self) -> None:
        """Keep no activations from within blocks for the backward pass."""
        is_old = not hasattr(self.model, "activation_checkpointing_enable")
        enable = self.model.gradient_checkpointing_enable if is_old else self.model.activation_checkpointing_enable
        enable({"use_reentrant": False})

    def embed(self, pixels: Tensor) -> Tensor:
        """CLIP's projected image embedding, not normalised; for others the class token, or what the model pools."""
        cls = self.forward(pixels).cls
        projection: nn.Module | None = getattr(self.model, "visual_projection", None)
        return cls if projection is None else projection(cls)

    def save(self, folder: Path, preprocess: Preprocess, *, img_size: int) -> None:
        """Write what `transformers.AutoModel` and `AutoImageProcessor` load: encoder, configuration, statistics."""
        library, statistics = (
            import_transformers(),
            {"image_mean": list(preprocess.mean), "image_std": list(preprocess.std)},
        )
        if self.family.takes_patches:
            most = (img_size // self.patch_size) ** 2
            processor = library.Siglip2ImageProcessor(patch_size=self.patch_size, max_num_patches=most, **statistics)
        else:
            size = {"height": img_size, "width": img_size}
            processor = library.ViTImageProcessor(size=size, resample=3, **statistics)  # bicubic
        with quiet():
            self.encoder.save_pretrained(folder)
            processor.save_pretrained(folder)

    def inputs(self, pixels: Tensor) -> dict[str, Any]:
        """What the encoder is called with."""
        return self.cut(pixels, self.patch_size) if self.family.takes_patches else {"pixel_values": pixels}

    @staticmethod
    def cut(pixels: Tensor, side: int) -> dict[str, Any]:
        """Images as the patches of `side` pixels that some encoders are called with."""
        height, width = pixels.shape[2] // side, pixels.shape[3] // side
        cut = pixels[..., : height * side, : width * side].reshape(len(pixels), 3, height, side, width, side)
        return {
            "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), height * width, -1),  # (B, N, p * p * 3)
            "pixel_attention_mask": None,  # no image is padded
            "spatial_shapes": torch.tensor([[height, width]] * len(pixels)),
        }

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size

    def _norm(self, sequence: Tensor) -> Tensor:
        return self.encoder.get_submodule(self.family.norm)(sequence)  # type: ignore[no-any-return]

    def _read_state(self, state: Tensor, grid: tuple[int, int], *, norm: bool) -> Tokens:
        """Tokens of a block's output, (B, prefix + N, D), or of a stage's map (B, D, h, w)."""
        if state.ndim == 3:
            return self._read(self._norm(state) if norm else state, grid, is_normed=norm)
        tokens = map_tokens(state)
        is_last = state.shape[1] == self.encoder.config.hidden_sizes[-1]
        return tokens.map(self._norm) if norm and is_last else tokens

    def _read(self, sequence: Tensor, grid: tuple[int, int], *, is_normed: bool) -> Tokens:
        patch, prefix = sequence[:, self.num_prefix :], sequence[:, int(self.family.has_cls) : self.num_prefix]
        if self.family.has_cls:
            return Tokens(sequence[:, 0], patch, grid, prefix)
        head = getattr(self.encoder, "head", None) if is_normed else None
        return Tokens(patch.mean(1) if head is None else head(patch), patch, grid, prefix)


def import_transformers() -> Any:
    """The library, or an error that names the extra."""
    try:
        import transformers
    except ImportError:
        raise ModelReferenceError(
            'hf: references need transformers, which is not installed. Try, in the clone of attar: pip install ".[hf]".'
        ) from None
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        raise ModelReferenceError(
            f"hf: references need transformers {'.'.join(map(str, _OLDEST))} or newer, {transformers.__version__} is"
            ' installed. Try, in the clone of attar: pip install ".[hf]".'
        )
    return transformers


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and no reports: what they would say, attar says in its errors."""
    from transformers.utils import logging as talk

    level, shows_bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if shows_bars:
            talk.enable_progress_bar()
