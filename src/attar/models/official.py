"""Official weight files: how each family names what timm names its own way. One entry per family."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from attar.models.layouts import Layout, Take, Unused
from attar.types import IMAGENET, Statistics

OPENAI: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

TIMM = Layout("timm")


def recognise(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[Layout, str]:
    """The layout of a file by its keys and the prefix of its image encoder; timm's own where no other is found.

    A file whose keys are all the model's own is in no need of translation, whatever they look like.
    """
    if state.keys() <= set(wanted):
        return TIMM, ""
    return next((layout, prefix) for layout in (*LAYOUTS, TIMM) if (prefix := layout.prefix_in(state)) is not None)


# ---- makers of tensors


def _all_zero(tensor: Tensor) -> bool:
    return not tensor.any()


def _conv(kernel: Tensor) -> Tensor:
    """Flax' (h, w, in, out) as torch's (out, in, h, w)."""
    return kernel.permute(3, 2, 0, 1)


def _heads_in(*kernels: Tensor) -> Tensor:
    """Flax' attention inputs, each (D, heads, d), as one matrix (n * D, D)."""
    return torch.cat([kernel.flatten(1).T for kernel in kernels])


def _heads_in_bias(*biases: Tensor) -> Tensor:
    """Flax' (heads, d) each, as one vector (n * D)."""
    return torch.cat([bias.flatten() for bias in biases])


def _heads_out(kernel: Tensor) -> Tensor:
    """Flax' attention output (heads, d, D) as torch's matrix (D, D)."""
    return kernel.flatten(0, 1).T


def _third(which: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One of query, key and value from DINOv3's joint bias; the mask beside it keeps the keys' at zero."""

    def take(bias: Tensor, mask: Tensor) -> Tensor:
        thirds = (bias * mask).chunk(3)
        if thirds[1].any():
            raise ValueError("the keys' third of the masked bias is not zero")
        return thirds[which]

    return take


# ---- the families

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}  # a head of 64 channels
_MASK_TOKEN = Unused(r"(.*\.)?mask_token", "used only while the original was trained")
_NO_POOL = "pooling by attention; the architecture named has none"
_BLOCK = r"blocks\.(\d+)"

_DINOV2 = Layout(
    "dinov2",  # facebookresearch/dinov2, hub files
    marks=(r"blocks\.\d+\.ls1\.gamma", r"mask_token|register_tokens|blocks\.\d+\.mlp\.w12\."),
    takes=(
        Take("reg_token", ("register_tokens",)),
        Take(rf"{_BLOCK}\.mlp\.fc1\.(.+)", (r"blocks.\1.mlp.w12.\2",), when=r"blocks\.\d+\.mlp\.w12\."),
        Take(rf"{_BLOCK}\.mlp\.fc2\.(.+)", (r"blocks.\1.mlp.w3.\2",), when=r"blocks\.\d+\.mlp\.w3\."),
    ),
    unused=(_MASK_TOKEN,),
    licence="apache-2.0",
    architecture="dinov2",
    statistics=IMAGENET,
    has_dinov2_positions=True,
    heads=_HEADS | {1536: 24},
)

_DINOV2_REGISTERS = replace(
    _DINOV2,
    name="dinov2+registers",
    marks=(*_DINOV2.marks, "register_tokens"),
    takes=(
        # timm adds positions to patches only; the class token's own entry is folded into the token
        Take("cls_token", ("cls_token", "pos_embed"), lambda token, table: token.float() + table[:, :1].float()),
        Take("pos_embed", ("pos_embed",), lambda table: table[:, 1:]),
        *_DINOV2.takes,
    ),
)

_DINOV3 = Layout(
    "dinov3",  # facebookresearch/dinov3, hub files of ViTs
    marks=(r"blocks\.\d+\.ls1\.gamma", r"storage_tokens|rope_embed\."),
    takes=(
        Take("reg_token", ("storage_tokens",)),
        Take(rf"{_BLOCK}\.gamma_([12])", (r"blocks.\1.ls\2.gamma",)),
        Take(rf"{_BLOCK}\.attn\.q_bias", (r"blocks.\1.attn.qkv.bias", r"blocks.\1.attn.qkv.bias_mask"), _third(0)),
        Take(rf"{_BLOCK}\.attn\.v_bias", (r"blocks.\1.attn.qkv.bias", r"blocks.\1.attn.qkv.bias_mask"), _third(2)),
        Take(rf"{_BLOCK}\.mlp\.fc1_g\.(.+)", (r"blocks.\1.mlp.w1.\2",)),
        Take(rf"{_BLOCK}\.mlp\.fc1_x\.(.+)", (r"blocks.\1.mlp.w2.\2",)),
        Take(rf"{_BLOCK}\.mlp\.fc2\.(.+)", (r"blocks.\1.mlp.w3.\2",), when=r"blocks\.\d+\.mlp\.w3\."),
        Take(r"rope\.periods", ("rope_embed.periods",)),
    ),
    unused=(
        _MASK_TOKEN,
        Unused(r"blocks\.\d+\.attn\.qkv\.bias", "zero, and the architecture has no biases there", _all_zero),
        Unused(r"blocks\.\d+\.attn\.qkv\.bias_mask", "belongs to biases that are zero"),
        Unused(r"local_cls_norm\.(weight|bias)", "norm of small crops, used only while the original was trained"),
    ),
    buffers=("rope.periods",),  # the originals are rounded to bfloat16, and trained so
    licence="dinov3-license",
    architecture="dinov3",
    heads=_HEADS | {1280: 20, 4096: 32},
)

_DINOV3_CONVNEXT = Layout(
    "dinov3-convnext",  # facebookresearch/dinov3, hub files of ConvNeXts
    marks=(r"norms\.3\.", r"stages\.\d+\.\d+\.dwconv\."),
    takes=(
        Take(r"stem\.(.+)", (r"downsample_layers.0.\1",)),
        Take(r"stages\.(\d+)\.downsample\.(.+)", (r"downsample_layers.\1.\2",)),
        Take(r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.+)", (r"stages.\1.\2.dwconv.\3",)),
        Take(r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(.+)", (r"stages.\1.\2.pwconv\3.\4",)),
        Take(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", (r"stages.\1.\2.\3",)),
        Take(r"head\.norm\.(.+)", (r"norm.\1",)),
    ),
    unused=(Unused(r"norms\.3\.(weight|bias)", "the final norm under its second name"),),
    licence="dinov3-license",
    architecture="convnext",
    statistics=IMAGENET,
)

_CLIP_TAKES = (
    Take("cls_token", ("class_embedding",), lambda token: token.reshape(1, 1, -1)),
    Take("pos_embed", ("positional_embedding",), lambda table: table[None]),
    Take(r"patch_embed\.proj\.weight", ("conv1.weight",)),
    Take(r"norm_pre\.(.+)", (r"ln_pre.\1",)),
    Take(r"norm\.(.+)", (r"ln_post.\1",)),
    Take(rf"{_BLOCK}\.norm([12])\.(.+)", (r"transformer.resblocks.\1.ln_\2.\3",)),
    Take(rf"{_BLOCK}\.attn\.qkv\.(.+)", (r"transformer.resblocks.\1.attn.in_proj_\2",)),
    Take(rf"{_BLOCK}\.attn\.proj\.(.+)", (r"transformer.resblocks.\1.attn.out_proj.\2",)),
    Take(rf"{_BLOCK}\.mlp\.fc1\.(.+)", (r"transformer.resblocks.\1.mlp.c_fc.\2",)),
    Take(rf"{_BLOCK}\.mlp\.fc2\.(.+)", (r"transformer.resblocks.\1.mlp.c_proj.\2",)),
)

_BESIDE_TOWERS = (
    Unused(r"logit_(scale|bias)", "temperature or bias of the contrastive loss"),
    Unused("input_resolution|context_length|vocab_size", "sizes that the tensors show as well"),
)
_BESIDE_IMAGES = (
    Unused(
        r"transformer\..+|token_embedding\.weight|positional_embedding|ln_final\.(weight|bias)"
        r"|text_projection|attn_mask|text\..+",
        "text tower",
    ),
    *_BESIDE_TOWERS,
)
_CLIP_UNUSED = (
    Unused(r"visual\.(proj|head\..+)", "projection into the space shared with text, beyond the tokens"),
    *_BESIDE_IMAGES,
)


def is_openai(state: Mapping[str, Tensor], prefix: str) -> bool:
    """OpenAI's files hold their sizes as tensors; its code makes matrices float16 and leaves the norms float32."""
    if any(key in state for key in ("input_resolution", "context_length", "vocab_size")):
        return True
    tower = [tensor.dtype for key, tensor in state.items() if key.startswith(prefix)]
    return torch.float16 in tower and torch.float32 in tower


_OPENAI = Layout(
    "openai-clip",  # openai/CLIP
    marks=(r"transformer\.resblocks\.\d+\.",),
    prefixes=("visual.",),
    proof=is_openai,
    takes=_CLIP_TAKES,
    unused=_CLIP_UNUSED,
    licence="mit",
    architecture="clip",
    statistics=OPENAI,
    activation="quick_gelu",
    heads=_HEADS,
)

_OPEN_CLIP = Layout(
    "open_clip",  # mlfoundations/open_clip, its own towers: OpenAI's names, with GELU or QuickGELU
    marks=(r"transformer\.resblocks\.\d+\.",),
    prefixes=("visual.",),
    takes=_CLIP_TAKES,
    unused=_CLIP_UNUSED,
    statistics=OPENAI,
    statistics_vary=True,  # ViT-L-14 of LAION-2B: 0.5
)

OPEN_CLIPS_OWN = (  # for open_clip's own modules, projection and all: a whole model's file, or the image tower alone
    Layout("open_clip", marks=(".",), prefixes=("visual.",), unused=_BESIDE_IMAGES),
    Layout("open_clip"),
)

_BESIDE_TEXT = (
    Unused(r"(module\.)?visual\..+", "image tower"),
    Unused(r"(module\.)?(text\.)?attn_mask", "causal mask, which the tower makes itself"),
    *_BESIDE_TOWERS,
)
OPEN_CLIP_TEXT = (  # for open_clip's text towers: under a name of their own, or at the top as in CLIP's file, or alone
    Layout("open_clip", marks=(".",), prefixes=("text.", "module.text."), unused=_BESIDE_TEXT),
    Layout("open_clip", marks=(r"token_embedding\.",), prefixes=("", "module."), unused=_BESIDE_TEXT),
    Layout("open_clip", unused=_BESIDE_TEXT),
)

_OPEN_CLIP_TIMM = Layout(
    "open_clip-timm",  # mlfoundations/open_clip with one of timm's models as tower
    marks=(r".",),
    prefixes=("visual.trunk.",),
    unused=(*_CLIP_UNUSED, Unused(r"visual\.trunk\.attn_pool\..+", _NO_POOL, unless=r"attn_pool\.")),
)


def _flax_norm(name: str, source: str) -> tuple[Take, Take]:
    return Take(rf"{name}\.weight", (f"{source}/scale",)), Take(rf"{name}\.bias", (f"{source}/bias",))


def _flax_linear(name: str, source: str) -> tuple[Take, Take]:
    return Take(rf"{name}\.weight", (f"{source}/kernel",), lambda m: m.T), Take(rf"{name}\.bias", (f"{source}/bias",))


def _flax_attention(name: str, source: str, *parts: str) -> tuple[Take, Take]:
    """Queries, keys or values, as many as timm keeps in one layer."""
    return (
        Take(rf"{name}\.weight", tuple(f"{source}/{part}/kernel" for part in parts), _heads_in),
        Take(rf"{name}\.bias", tuple(f"{source}/{part}/bias" for part in parts), _heads_in_bias),
    )


def _flax_attention_out(name: str, source: str) -> tuple[Take, Take]:
    return Take(rf"{name}\.weight", (f"{source}/kernel",), _heads_out), Take(rf"{name}\.bias", (f"{source}/bias",))


_FLAX_BLOCK = r"Transformer/encoderblock_\1"
_FLAX_ATTENTION = f"{_FLAX_BLOCK}/MultiHeadDotProductAttention_0"
_FLAX_POOL_ATTENTION = "MAPHead_0/MultiHeadDotProductAttention_0"

_SIGLIP = Layout(
    "siglip",  # google-research/big_vision, .npz of SigLIP and SigLIP 2
    marks=(r"Transformer/encoderblock_\d+/", "embedding/"),
    prefixes=("params/img/", "img/"),
    takes=(
        Take("pos_embed", ("pos_embedding",)),
        Take(r"patch_embed\.proj\.weight", ("embedding/kernel",), _conv),
        Take(r"patch_embed\.proj\.bias", ("embedding/bias",)),
        *_flax_norm("norm", "Transformer/encoder_norm"),
        *_flax_norm(rf"{_BLOCK}\.norm1", f"{_FLAX_BLOCK}/LayerNorm_0"),
        *_flax_norm(rf"{_BLOCK}\.norm2", f"{_FLAX_BLOCK}/LayerNorm_1"),
        *_flax_attention(rf"{_BLOCK}\.attn\.qkv", _FLAX_ATTENTION, "query", "key", "value"),
        *_flax_attention_out(rf"{_BLOCK}\.attn\.proj", f"{_FLAX_ATTENTION}/out"),
        *_flax_linear(rf"{_BLOCK}\.mlp\.fc1", f"{_FLAX_BLOCK}/MlpBlock_0/Dense_0"),
        *_flax_linear(rf"{_BLOCK}\.mlp\.fc2", f"{_FLAX_BLOCK}/MlpBlock_0/Dense_1"),
        Take(r"attn_pool\.latent", ("MAPHead_0/probe",)),
        *_flax_attention(r"attn_pool\.q", _FLAX_POOL_ATTENTION, "query"),
        *_flax_attention(r"attn_pool\.kv", _FLAX_POOL_ATTENTION, "key", "value"),
        *_flax_attention_out(r"attn_pool\.proj", f"{_FLAX_POOL_ATTENTION}/out"),
        *_flax_norm(r"attn_pool\.norm", "MAPHead_0/LayerNorm_0"),
        *_flax_linear(r"attn_pool\.mlp\.fc1", "MAPHead_0/MlpBlock_0/Dense_0"),
        *_flax_linear(r"attn_pool\.mlp\.fc2", "MAPHead_0/MlpBlock_0/Dense_1"),
    ),
    unused=(
        Unused(r"(params/)?txt/.+", "text tower"),
        Unused(r"(params/)?[tb]", "temperature or bias of the contrastive loss"),
        Unused(r"(params/)?img/MAPHead_0/.+", _NO_POOL, unless=r"attn_pool\."),
    ),
    licence="apache-2.0",
    architecture="siglip",
    statistics=HALF,
    activation="gelu_tanh",
    heads=_HEADS | {1152: 16, 1536: 16},
)


def _has_no_text_tower(state: Mapping[str, Tensor], prefix: str) -> bool:
    return not any(re.match(r"(module\.)?(token_embedding|transformer)\.", key) for key in state)


_SYNCLR = Layout(
    "synclr",  # google-research/syn-rep-learn
    marks=(r"blocks\.\d+\.norm1\.",),
    prefixes=("visual.",),
    proof=_has_no_text_tower,  # SLIP and StableRep+ have the same names for images
    unused=(
        _MASK_TOKEN,
        Unused(r"visual\.head\..+", "head; the original's evaluation drops it"),
        Unused(r"(?!visual\.).+", "beside the image encoder; the original's evaluation drops it"),
    ),
    licence="apache-2.0",
    statistics=IMAGENET,
    heads=_HEADS,
)


def _of_proteus(layout: Layout, name: str) -> Layout:
    """Proteus' checkpoints: the student is of the teacher's family, and everything else is kept beside it."""
    beside = (
        Unused(r"teacher\..+", "the teacher, kept in the checkpoint"),
        Unused(r"[a-z]+_head\..+", "head of the distillation"),
    )
    return replace(
        layout,
        name=name,
        prefixes=("student.backbone.",),
        proof=lambda state, prefix: True,
        unused=(_MASK_TOKEN, *beside),
        licence="mit",
        architecture="",
        statistics=IMAGENET,  # for every teacher
    )


_PROTEUS = _of_proteus(_DINOV2, "proteus")
_PROTEUS_CLIP = _of_proteus(_OPENAI, "proteus-clip")
_PROTEUS_SYNCLR = _of_proteus(_SYNCLR, "proteus-synclr")

# The first that recognises a file has it: special cases stand before general ones.
LAYOUTS = (
    _PROTEUS,
    _PROTEUS_CLIP,
    _PROTEUS_SYNCLR,
    _DINOV3_CONVNEXT,
    _DINOV3,
    _DINOV2_REGISTERS,
    _DINOV2,
    _OPENAI,
    _OPEN_CLIP,
    _OPEN_CLIP_TIMM,
    _SIGLIP,
    _SYNCLR,
)
