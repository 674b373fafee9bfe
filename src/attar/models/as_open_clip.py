"""Towers in open_clip's own words: the description by which it builds them, with their tensors.

A trunk of timm that its name alone rebuilds stays one. Any other ViT becomes open_clip's `VisionTransformer`, exactly
(`open_clip_names.py` has its tensors).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import timm.layers
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from attar.errors import ConfigError
from attar.models.backbone import Backbone
from attar.models.files import StateDict
from attar.models.open_clip import OpenClipTower, TimmTower, VisionTransformerTower, build_vision
from attar.models.open_clip_names import OF_TIMM, OF_TRANSFORMERS, translated
from attar.models.open_clip_text import build_text
from attar.models.text import TextTower, ratio_of
from attar.models.transformers_text import TransformersText
from attar.models.weights import activation_name
from attar.utils.seeding import seeded_torch


@dataclass(frozen=True)
class InOpenClip:
    """A tower as open_clip has it.

    Attributes:
        config: `vision_cfg` or `text_cfg`.
        state: Its tensors, under the names of open_clip's module.
        quick_gelu: Whether its activation is QuickGELU, which open_clip says once for both towers; None where it does
            not matter to this one.
    """

    config: dict[str, Any]
    state: StateDict
    quick_gelu: bool | None


def image_as_open_clip(image: Backbone, embed_dim: int) -> InOpenClip:
    """An image tower of open_clip, or a timm model with a projection, as open_clip builds it.

    Args:
        image: The tower.
        embed_dim: Width of the space it shares.

    Raises:
        ConfigError: If open_clip has no words for it.
    """
    tower, name = image.model, image.source.name
    if not isinstance(tower, OpenClipTower):
        raise ConfigError(
            f"the image tower {name} is none of open_clip, and no timm model with a projection: open_clip cannot load"
            " it. Give the student as a timm model or open_clip:NAME."
        )
    for config in _descriptions(tower, image.img_size):
        quick = bool(config.get("quick_gelu", False))
        visual = _built(build_vision, {**config, "embed_dim": embed_dim}, name)
        if _is_alike(_trunk(visual), _trunk(tower.visual)):
            has_gelu = isinstance(tower, VisionTransformerTower)
            return InOpenClip(dict(config["vision_cfg"]), tower.visual.state_dict(), quick if has_gelu else None)
    if tower.config is not None:
        raise ConfigError(
            f"the image tower {name} at {image.img_size} px is not what its description in open_clip builds."
            " Take it at its own input size (leave img_size out)."
        )
    return _vit_as_open_clip(image, embed_dim)


def text_as_open_clip(text: TextTower) -> InOpenClip:
    """A text tower of open_clip, or one of transformers, as open_clip builds it. The tokeniser's name is left as it is.

    Raises:
        ConfigError: If open_clip has no words for it, or would fetch them from the model hub.
    """
    config = {**text.config["text_cfg"], "output_tokens": False}
    if "hf_model_name" in config:
        raise ConfigError(
            f"the text tower {text.source.name} is one of transformers that open_clip builds by a name on the model"
            " hub, so that the student would not load without it. Set text to small_student, or take another teacher."
        )
    quick, state = bool(text.config.get("quick_gelu", False)), text.model.state_dict()
    model = _built(build_text, {"embed_dim": text.embed_dim, "text_cfg": config, "quick_gelu": quick}, text.source.name)
    if isinstance(text.model, TransformersText):
        state = translated(_of_transformers(text), model, OF_TRANSFORMERS, f"the text tower {text.source.name}")
    elif not _is_alike(model, text.model):
        raise ConfigError(
            f"the text tower {text.source.name} is not what its description in open_clip builds, so that open_clip"
            " cannot load it. Take one of load_text_tower or small_text_tower."
        )
    return InOpenClip(config, state, quick)


def _of_transformers(text: TextTower) -> StateDict:
    """A text encoder's tensors without the names of the models around it, which CLIP and SigLIP have differently."""
    state: StateDict = text.model.state_dict()
    return {key.removeprefix("model.").removeprefix("text_model."): tensor for key, tensor in state.items()}


# ---- by description


def _descriptions(tower: OpenClipTower, img_size: int) -> Iterator[Mapping[str, Any]]:
    """What may build the image tower: open_clip's own description, or the name of its trunk in timm."""
    if tower.config is not None:
        yield tower.config
    elif isinstance(tower, TimmTower):
        for name in _names(tower.visual.trunk, img_size):
            yield {"vision_cfg": {"timm_model_name": name, "timm_pool": "", "image_size": img_size}}


def _names(trunk: Any, img_size: int) -> Iterator[str]:
    """Names in timm that may build the trunk: its architecture's, or with the tag that means another input size."""
    architecture, tag = trunk.pretrained_cfg["architecture"], trunk.pretrained_cfg.get("tag")
    for name in dict.fromkeys([architecture, f"{architecture}.{tag}" if tag else architecture]):
        try:
            said = timm.get_pretrained_cfg(name)
        except RuntimeError:  # a tag of a directory's own, which timm does not know
            continue
        if said is not None and (not said.fixed_input_size or said.input_size[-1] == img_size):
            yield name


def _trunk(visual: Any) -> nn.Module:
    return visual.trunk if hasattr(visual, "trunk") else visual  # type: ignore[no-any-return]


def _built(build: Any, config: Mapping[str, Any], name: str) -> Any:
    with seeded_torch(0, "initialisation"):
        return build(config, name)


_AT_REST = (nn.Identity, nn.Dropout, timm.layers.DropPath, timm.layers.PatchDropout)  # where nothing is trained
_OF_TRAINING = ("training", "grad_checkpointing", "num_classes", "weight_init_mode", "fix_init")


def _is_alike(model: nn.Module, other: nn.Module) -> bool:
    """Whether two models compute the same of the same tensors: modules, their settings, and shapes agree."""
    shapes, others = ({key: tensor.shape for key, tensor in one.state_dict().items()} for one in (model, other))
    return shapes == others and _anatomy(model) == _anatomy(other)


def _anatomy(model: nn.Module) -> dict[str, Any]:
    """Of each module by its name: its kind and its settings."""
    return {
        name: (type(module), {key: value for key, value in vars(module).items() if _is_setting(key, value)})
        for name, module in model.named_modules()
        if not isinstance(module, _AT_REST)
    }


def _is_setting(key: str, value: object) -> bool:
    is_plain = isinstance(value, bool | int | float | str | tuple)
    return is_plain and not key.startswith(("_", "drop", "patch_drop")) and key not in _OF_TRAINING


# ---- a ViT of timm as open_clip's own


_KINDS = {VisionTransformer, timm.layers.PatchEmbed, Block, timm.layers.Attention, timm.layers.Mlp}
_KINDS |= {timm.layers.LayerScale, timm.layers.LayerNorm, nn.LayerNorm}
_KINDS |= {nn.Conv2d, nn.Linear, nn.Sequential, *_AT_REST}


def _vit_as_open_clip(image: Backbone, embed_dim: int) -> InOpenClip:
    """A timm ViT with a projection as open_clip's `VisionTransformer`.

    Raises:
        ConfigError: If a part of it is not in there.
    """
    visual: Any = image.model.visual
    trunk, what = visual.trunk, f"the image tower {image.source.name}"
    unsaid = _unsaid(trunk)
    if unsaid is not None:
        raise ConfigError(
            f"{what} at {image.img_size} px has {unsaid}, which open_clip cannot build: it knows timm's models by their"
            " name alone, at their own size, and plain ViTs. Take the model without arguments and at its own img_size,"
            " or a plain ViT such as vit_small_patch16_224?patch_size=8."
        )
    state = visual.state_dict()
    if trunk.no_embed_class:
        state["trunk.pos_embed"] = F.pad(state["trunk.pos_embed"], (0, 0, 1, 0))  # a row of zeros for the class token
    activation, first = _activations(trunk).pop(), trunk.blocks[0]
    config = {
        "image_size": image.img_size,
        "patch_size": trunk.patch_embed.patch_size[0],
        "width": trunk.embed_dim,
        "layers": len(trunk.blocks),
        "head_width": first.attn.head_dim,
        "mlp_ratio": ratio_of(first.mlp.fc1.out_features, trunk.embed_dim),
        "ls_init_value": 1.0 if "trunk.blocks.0.ls1.gamma" in state else None,
        "no_ln_pre": isinstance(trunk.norm_pre, nn.Identity),
        "pool_type": {"token": "tok", "avg": "avg"}[trunk.global_pool],
        "final_ln_after_pool": isinstance(trunk.norm, nn.Identity),
        "norm_kwargs": {"eps": first.norm1.eps},
    }
    if activation == "gelu_tanh":
        config["act_kwargs"] = {"approximate": "tanh"}
    quick = activation == "quick_gelu"
    model = _built(build_vision, {"embed_dim": embed_dim, "vision_cfg": config, "quick_gelu": quick}, image.source.name)
    return InOpenClip(config, translated(state, model, OF_TIMM, what), quick)


def _activations(trunk: Any) -> set[str | None]:
    return {activation_name(block.mlp.act) for block in trunk.blocks}


def _unsaid(trunk: Any) -> str | None:
    """What of a trunk, besides its tensors, open_clip's `VisionTransformer` has no words for."""
    if type(trunk) is not VisionTransformer:
        return f"the form of a {type(trunk).__name__}"
    alien = next((type(m).__name__ for m in trunk.modules() if type(m) not in _KINDS and not activation_name(m)), None)
    if alien is not None:
        return f"a {alien}"
    activations = _activations(trunk)
    if len(activations) > 1 or None in activations:
        return "other activations than GELU"
    if trunk.global_pool not in ("token", "avg") or trunk.pool_include_prefix:
        return f"pooling '{trunk.global_pool}'{' with the class token' if trunk.pool_include_prefix else ''}"
    if len({module.eps for module in trunk.modules() if isinstance(module, nn.LayerNorm)}) > 1:
        return "norms of several eps"
    if trunk.num_prefix_tokens != 1 or trunk.cls_token is None or trunk.pos_embed is None:
        return "registers, no class token or no positions"
    return None
