"""Tensors of other libraries under the names of open_clip's own modules.

Its convolution of patches has no bias, so that a timm model's goes into the table of positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attar.errors import ConfigError
from attar.models.files import StateDict, some
from attar.models.layouts import Layout, Take, convert

_BLOCK = r"transformer\.resblocks\.(\d+)\."


def _positions(table: Tensor, bias: Tensor) -> Tensor:
    """(1 + N, D): the patches' bias added to each position but the class token's."""
    table = table[0].clone()
    table[1:] += bias
    return table


OF_TIMM = Layout(
    "timm",
    takes=(
        Take("proj", ("head.proj.weight",), lambda matrix: matrix.T),
        Take("class_embedding", ("trunk.cls_token",), Tensor.flatten),
        Take(
            "positional_embedding",
            ("trunk.pos_embed", "trunk.patch_embed.proj.bias"),
            _positions,
            when=r"trunk\.patch_embed\.proj\.bias",
        ),
        Take("positional_embedding", ("trunk.pos_embed",), lambda table: table[0]),
        Take(r"conv1\.weight", ("trunk.patch_embed.proj.weight",)),
        Take(r"ln_pre\.(.+)", (r"trunk.norm_pre.\1",)),
        Take(r"ln_post\.(.+)", (r"trunk.fc_norm.\1",), when=r"trunk\.fc_norm\."),
        Take(r"ln_post\.(.+)", (r"trunk.norm.\1",)),
        Take(rf"{_BLOCK}ln_([12])\.(.+)", (r"trunk.blocks.\1.norm\2.\3",)),
        Take(rf"{_BLOCK}attn\.in_proj_(.+)", (r"trunk.blocks.\1.attn.qkv.\2",)),
        Take(rf"{_BLOCK}attn\.out_proj\.(.+)", (r"trunk.blocks.\1.attn.proj.\2",)),
        Take(rf"{_BLOCK}ls_([12])\.gamma", (r"trunk.blocks.\1.ls\2.gamma",)),
        Take(rf"{_BLOCK}mlp\.c_fc\.(.+)", (r"trunk.blocks.\1.mlp.fc1.\2",)),
        Take(rf"{_BLOCK}mlp\.c_proj\.(.+)", (r"trunk.blocks.\1.mlp.fc2.\2",)),
    ),
)
"""A ViT of timm, behind a projection."""


def _joined(*parts: Tensor) -> Tensor:
    """Queries, keys and values in one."""
    return torch.cat(parts)


_LAYER = r"encoder.layers.\1"
OF_TRANSFORMERS = Layout(
    "transformers",
    takes=(
        Take(r"token_embedding\.weight", ("embeddings.token_embedding.weight",)),
        Take("positional_embedding", ("embeddings.position_embedding.weight",)),
        Take(r"ln_final\.(.+)", (r"final_layer_norm.\1",)),
        Take("text_projection", ("text_projection.weight",), lambda matrix: matrix.T),  # CLIP's
        Take(r"text_projection\.(.+)", (r"head.\1",)),  # SigLIP's, a layer with bias
        Take(rf"{_BLOCK}ln_([12])\.(.+)", (rf"{_LAYER}.layer_norm\2.\3",)),
        Take(rf"{_BLOCK}attn\.in_proj_(.+)", tuple(rf"{_LAYER}.self_attn.{part}_proj.\2" for part in "qkv"), _joined),
        Take(rf"{_BLOCK}attn\.out_proj\.(.+)", (rf"{_LAYER}.self_attn.out_proj.\2",)),
        Take(rf"{_BLOCK}mlp\.c_fc\.(.+)", (rf"{_LAYER}.mlp.fc1.\2",)),
        Take(rf"{_BLOCK}mlp\.c_proj\.(.+)", (rf"{_LAYER}.mlp.fc2.\2",)),
    ),
)
"""A text tower of transformers, without the names of the models around it."""


def translated(state: StateDict, model: nn.Module, layout: Layout, what: str) -> StateDict:
    """All tensors that open_clip's module wants, made of all that there are.

    Raises:
        ConfigError: If one is missing, left over or of another shape.
    """
    wanted: StateDict = model.state_dict()
    converted = convert(state, wanted, layout, "")
    misshapen = [name for name, tensor in converted.state.items() if tensor.shape != wanted[name].shape]
    odd = {"lacks": converted.missing, "has besides": converted.left_over, "has in another shape": misshapen}
    if found := [f"{verb} {some(names, shown=3)}" for verb, names in odd.items() if names] or converted.misfits:
        raise ConfigError(
            f"{what} {'; '.join(found)}, for which open_clip has no words. Take a plain ViT without such parts as"
            " student, such as vit_small_patch16_224?patch_size=8, or another teacher."
        )
    return converted.state
