"""Image towers of open_clip, by name or folder, as they are, with the projection that its embeddings go through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.features import map_tokens, read_intermediates, read_tokens
from attar.models.files import StateDict, noted
from attar.models.layouts import Converted, convert
from attar.models.licences import licence_beside, licence_of_tag
from attar.models.masking import patch_embedding
from attar.models.official import OPEN_CLIPS_OWN
from attar.models.open_clip_files import (
    described_in,
    folder_in,
    model_config,
    open_clip_library,
    open_weights,
    published_tag,
)
from attar.models.positions import resample_positions
from attar.models.references import Reference
from attar.models.tower import Tower
from attar.models.weights import check_keys
from attar.types import Tokens
from attar.utils.seeding import seeded_torch

_TABLES = {"positional_embedding", "attnpool.positional_embedding"}  # of a ViT; of a ResNet's pooling


class OpenClipTower(Tower):
    """An image tower of open_clip, whose own output is the embedding.

    Attributes:
        visual: open_clip's module; its state dict is what ships.
        config: What of open_clip's description of a model builds it: `embed_dim`, `vision_cfg` and `quick_gelu`. None
            for a trunk of timm with a projection of attar's.
    """

    def __init__(self, visual: Any, config: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.visual, self.config = visual, config

    def recompute_blocks(self) -> None:
        """Keep no activations from within blocks for the backward pass."""
        self.visual.set_grad_checkpointing(True)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, E): the image embedding after its projection, not normalised."""
        return self.visual(pixels)  # type: ignore[no-any-return]


class VisionTransformerTower(OpenClipTower):
    """open_clip's own `VisionTransformer`: `cls` is what it pools and norms before its projection."""

    def __init__(self, visual: Any, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(visual, config)
        self.depth = len(visual.transformer.resblocks)
        self.patch_size = visual.patch_size[0]

    @property
    def patch_embed(self) -> nn.Module:
        """The convolution that embeds each patch."""
        return self.visual.conv1  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""
        return self.intermediates(pixels, [self.depth - 1], norm=True)[0]

    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after chosen blocks."""
        found = self.visual.forward_intermediates(
            pixels, indices=layers, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"], strict=True)
        return [self._read(torch.cat(pair, dim=1), norm=norm) for pair in pairs]

    def _read(self, sequence: Tensor, *, norm: bool) -> Tokens:
        """Tokens of a block's output (B, 1 + N, D)."""
        patch = (self.visual.ln_post(sequence) if norm else sequence)[:, 1:]
        cls = self.visual._pool(sequence)[0] if norm else sequence[:, 0]  # norm before or after pooling: it knows
        return Tokens(cls, patch, self.visual.grid_size, patch[:, :0])


class ResNetTower(OpenClipTower):
    """open_clip's `ModifiedResNet`: the last map. Its attention pooling projects, so that `cls` is the map's mean."""

    depth = 5  # stem and four stages
    patch_size = 32

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens of the last map."""
        return self.intermediates(pixels, [self.depth - 1], norm=False)[0]

    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens of chosen maps, of the stem and the stages; they have no norm."""
        found = self.visual.forward_intermediates(pixels, indices=layers, intermediates_only=True)
        return [map_tokens(image) for image in found["image_intermediates"]]


class TimmTower(OpenClipTower):
    """open_clip's `TimmModel`: the tokens of timm's trunk, the embedding of trunk and projection."""

    def __init__(self, visual: Any, config: Mapping[str, Any] | None = None) -> None:
        super().__init__(visual, config)
        self.depth = len(visual.trunk.feature_info)
        self.patch_size = int(visual.trunk.feature_info[-1]["reduction"])

    @property
    def patch_embed(self) -> nn.Module | None:
        """The trunk's, where it embeds each patch by itself."""
        return patch_embedding(self.visual.trunk, self.patch_size)

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""
        return read_tokens(self.visual.trunk, pixels, "the timm trunk")

    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after chosen blocks or stages of the trunk."""
        trunk = self.visual.trunk
        return read_intermediates(trunk, pixels, layers, norm=norm, embed_dim=trunk.num_features)


def load_open_clip(
    reference: Reference,
    *,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    trust_torchscript: bool = False,
    seed: int = 0,
) -> Backbone:
    """The image tower of an open_clip model as a `Backbone` on the CPU; its text tower is neither built nor kept.

    Args:
        reference: `open_clip:NAME?pretrained=TAG`, whose tag names published weights; or a folder in place of the name.
        weights: `pretrained`, `random`, or a file with the state dict of the whole model or of `visual` alone.
        img_size: Input size in pixels; position tables are resampled as open_clip does.
        trust_torchscript: Read a file that is a TorchScript archive, which can run code.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If open_clip is missing, knows no such model or tag, or its tower gives no tokens.
        WeightsError: If the weights are missing or one key does not fit.
    """
    library = open_clip_library()
    config = model_config(library, reference)
    tag = published_tag(library, reference, weights)
    with seeded_torch(seed, "initialisation"):
        tower = _build(config, img_size, reference)
    source = Provenance(f"open_clip:{reference}")
    if weights != "random":
        has_gelu = isinstance(tower, VisionTransformerTower)
        file, state, part = open_weights(
            library, reference, tag, weights, trust_torchscript=trust_torchscript, has_gelu=has_gelu
        )
        converted = _load(tower.visual, file, state)
        source = Provenance.of_files(
            source.name,
            [file],
            weights=noted("open_clip", part),
            licence=licence_beside(file) or licence_of_tag(reference.name, tag),
            explained=converted.explained,
        )
    if img_size is not None and isinstance(tower, TimmTower) and hasattr(tower.visual.trunk, "set_input_size"):
        tower.visual.set_input_size(img_size)
    size = img_size or config["vision_cfg"].get("image_size", 224)
    return Backbone(tower, img_size=size, preprocess=_preprocess(library, reference, tag), source=source).eval()


def _build(config: Mapping[str, Any], img_size: int | None, reference: Reference) -> OpenClipTower:
    """The image tower with fresh weights."""
    vision = {**config["vision_cfg"], "timm_model_pretrained": False, "patch_dropout": 0.0, "output_tokens": False}
    if img_size is not None:
        vision["image_size"] = img_size
    own = {**{key: config[key] for key in ("embed_dim", "quick_gelu") if key in config}, "vision_cfg": vision}
    visual: Any = build_vision(own, f"open_clip:{reference}")
    from open_clip.model import ModifiedResNet, TimmModel, VisionTransformer

    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type != "none":
        return VisionTransformerTower(visual, own)
    if isinstance(visual, ModifiedResNet):
        return ResNetTower(visual, own)
    if isinstance(visual, TimmModel) and hasattr(visual.trunk, "feature_info"):
        return TimmTower(visual, own)
    raise ModelReferenceError(
        f"model 'open_clip:{reference}' pools its patches into other tokens (CoCa), so that it has no class token to"
        " learn from. Wrap it in a factory of your own: module:package.mod:factory."
    )


def build_vision(config: Mapping[str, Any], reference: str) -> nn.Module:
    """The image tower of open_clip's description of a model, with fresh weights of torch's global generator.

    Raises:
        ModelReferenceError: If open_clip can build none.
    """
    try:
        from open_clip.model import _build_vision_tower

        # the whole model would build its text tower too, for some with a download
        visual: nn.Module = _build_vision_tower(
            config["embed_dim"], dict(config["vision_cfg"]), quick_gelu=config.get("quick_gelu", False)
        )
    except Exception as error:  # constructors raise many kinds, other versions of open_clip ImportError
        raise ModelReferenceError(f"model '{reference}' cannot be built: {error}.") from error
    return visual


def _preprocess(library: Any, reference: Reference, tag: str | None) -> Preprocess:
    """Of a folder its own, or those of the published weights; for a file those of all, or OpenAI's if they differ."""
    default, folder = library.transform.PreprocessCfg(), folder_in(reference)
    if folder is not None:
        configs = [described_in(folder, "preprocess_cfg")]
    else:
        tags = [tag] if tag else library.list_pretrained_tags_by_model(reference.name)
        configs = [library.get_pretrained_cfg(reference.name, known) for known in tags]
    found = {(tuple(config.get("mean") or default.mean), tuple(config.get("std") or default.std)) for config in configs}
    mean, std = found.pop() if len(found) == 1 else (tuple(default.mean), tuple(default.std))
    return Preprocess(mean, std)


def _load(visual: nn.Module, file: Path, state: StateDict) -> Converted:
    """Load strictly the image tower of a whole model, or one alone; position tables of another size are resampled."""
    wanted: StateDict = visual.state_dict()
    layout, prefix = next(
        (layout, prefix) for layout in OPEN_CLIPS_OWN if (prefix := layout.prefix_in(state)) is not None
    )
    converted = convert(state, wanted, layout, prefix)
    for name in _TABLES & converted.state.keys():
        converted.state[name] = _resample(converted.state[name], wanted[name])
    check_keys(converted, wanted, state=state, path=file)
    visual.load_state_dict(converted.state, strict=True)
    return converted


def _resample(table: Tensor, wanted: Tensor) -> Tensor:
    """A table (1 + n * n, D) on the model's grid, bicubic with antialiasing, as `open_clip.model.resize_pos_embed`."""
    side, given = (round((len(entries) - 1) ** 0.5) if entries.ndim == 2 else 0 for entries in (wanted, table))
    if table.shape[1:] != wanted.shape[1:] or given**2 + 1 != len(table):
        return table
    return resample_positions(table[None].float(), (side, side), num_prefix=1, how="timm")[0].to(table.dtype)
