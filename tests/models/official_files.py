"""Weight files as the originals publish them, small, and the originals' forward passes in plain torch.

Shares no line with attar or timm. Keys, shapes and formulas were read in facebookresearch/dinov3, openai/CLIP,
google-research/big_vision, google-research/syn-rep-learn and BeSpontaneous/Proteus-pytorch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
OPENAI = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])
HALF = torch.full((2, 3), 0.5)


class Maker:
    """Random tensors by seed; every entry is large enough to show in the output."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.dim = dim
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 0.5, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": self.normal(rows, columns, std=columns**-0.5), f"{name}.bias": self.normal(rows)}

    def conv(self, name: str, rows: int, columns: int, size: int, *, bias: bool = True) -> State:
        weight = {f"{name}.weight": self.normal(rows, columns, size, size, std=(columns * size * size) ** -0.5)}
        return weight | ({f"{name}.bias": self.normal(rows)} if bias else {})

    def norm(self, name: str, dim: int | None = None) -> State:
        dim = dim or self.dim
        return {f"{name}.weight": self.normal(dim, std=0.3, mean=1.0), f"{name}.bias": self.normal(dim)}


# ---- states


def dinov3_state(*, dim: int = 48, heads: int = 3, depth: int = 2, swiglu: bool = False, bias: float = 0.5) -> State:
    """A hub file of a ViT; the published ones hold biases, all zero in the distilled sizes, and rounded periods."""
    make, size = Maker(dim), dim // heads
    state = {"cls_token": make.normal(1, 1, dim), "storage_tokens": make.normal(1, 4, dim)}
    state["mask_token"] = make.normal(1, dim)
    state |= make.conv("patch_embed.proj", dim, 3, 16)
    periods = 100 ** (torch.arange(size // 4) / (size // 4))
    state["rope_embed.periods"] = periods.bfloat16().float()
    for i in range(depth):
        block = f"blocks.{i}"
        state |= make.norm(f"{block}.norm1") | make.linear(f"{block}.attn.qkv", 3 * dim, dim)
        mask = torch.ones(3 * dim)
        mask[dim : 2 * dim] = 0
        state[f"{block}.attn.qkv.bias"] *= bias
        state[f"{block}.attn.qkv.bias_mask"] = mask
        state |= make.linear(f"{block}.attn.proj", dim, dim) | {f"{block}.ls1.gamma": make.normal(dim)}
        state |= make.norm(f"{block}.norm2")
        if swiglu:
            hidden = 4 * dim
            state |= make.linear(f"{block}.mlp.w1", hidden, dim) | make.linear(f"{block}.mlp.w2", hidden, dim)
            state |= make.linear(f"{block}.mlp.w3", dim, hidden)
        else:
            state |= make.linear(f"{block}.mlp.fc1", 4 * dim, dim) | make.linear(f"{block}.mlp.fc2", dim, 4 * dim)
        state[f"{block}.ls2.gamma"] = make.normal(dim)
    return state | make.norm("norm")


def dinov3_convnext_state(*, depths: tuple[int, ...] = (1, 1, 2, 1), dims: tuple[int, ...] = (8, 16, 24, 32)) -> State:
    make = Maker(dims[-1])
    state = make.conv("downsample_layers.0.0", dims[0], 3, 4) | make.norm("downsample_layers.0.1", dims[0])
    for i in range(1, 4):
        state |= make.norm(f"downsample_layers.{i}.0", dims[i - 1])
        state |= make.conv(f"downsample_layers.{i}.1", dims[i], dims[i - 1], 2)
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        for block in (f"stages.{i}.{j}" for j in range(depth)):
            state |= {f"{block}.gamma": make.normal(dim)} | make.conv(f"{block}.dwconv", dim, 1, 7)
            state |= make.norm(f"{block}.norm", dim)
            state |= make.linear(f"{block}.pwconv1", 4 * dim, dim) | make.linear(f"{block}.pwconv2", dim, 4 * dim)
    state |= make.norm("norm")
    return state | {f"norms.3.{kind}": state[f"norm.{kind}"] for kind in ("weight", "bias")}


def clip_visual_state(prefix: str = "visual.", *, dim: int = 128, depth: int = 2, side: int = 4) -> State:
    make = Maker(dim)
    state = {"class_embedding": make.normal(dim), "positional_embedding": make.normal(side * side + 1, dim)}
    state |= make.conv("conv1", dim, 3, 16, bias=False) | make.norm("ln_pre")
    state |= _clip_blocks(make, dim, depth) | make.norm("ln_post")
    return {prefix + key: value for key, value in state.items()}


def clip_text_state(*, dim: int = 64, depth: int = 1) -> State:
    make = Maker(dim, seed=1)
    state = {"positional_embedding": make.normal(7, dim), "text_projection": make.normal(dim, 24)}
    state |= {"logit_scale": torch.tensor(4.6), "token_embedding.weight": make.normal(11, dim)}
    return state | _clip_blocks(make, dim, depth) | make.norm("ln_final")


def _clip_blocks(make: Maker, dim: int, depth: int) -> State:
    state: State = {}
    for block in (f"transformer.resblocks.{i}" for i in range(depth)):
        qkv = make.linear("x", 3 * dim, dim)
        state |= {f"{block}.attn.in_proj_weight": qkv["x.weight"], f"{block}.attn.in_proj_bias": qkv["x.bias"]}
        state |= make.linear(f"{block}.attn.out_proj", dim, dim) | make.norm(f"{block}.ln_1")
        state |= make.linear(f"{block}.mlp.c_fc", 4 * dim, dim) | make.linear(f"{block}.mlp.c_proj", dim, 4 * dim)
        state |= make.norm(f"{block}.ln_2")
    return state


def openai_state() -> State:
    """Both towers, matrices in float16, sizes as tensors: what an archive of OpenAI's holds."""
    state = clip_visual_state() | {"visual.proj": Maker(128).normal(128, 24)} | clip_text_state()
    is_half = ("weight", "in_proj_bias", "out_proj.bias", "c_fc.bias", "c_proj.bias", "proj", "projection")
    half = {key for key in state if key.endswith(is_half) and "ln_" not in key and "token_embedding" not in key}
    sizes = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(7), "vocab_size": torch.tensor(11)}
    return {key: value.half() if key in half else value for key, value in state.items()} | sizes


def open_clip_state(prefix: str = "") -> State:
    """open_clip with a tower of its own; `module.` stands before the keys where several GPUs trained it."""
    state = clip_visual_state() | {"visual.proj": Maker(128).normal(128, 24)} | clip_text_state()
    return {prefix + key: value for key, value in state.items()}


def timm_vit_state(
    prefix: str = "", *, dim: int = 48, depth: int = 2, side: int = 4, patch: int = 16, cls: bool = True
) -> State:
    """A ViT in timm's names, without LayerScale."""
    make = Maker(dim)
    state = {"cls_token": make.normal(1, 1, dim)} if cls else {}
    state |= {"pos_embed": make.normal(1, side * side + cls, dim)} | make.conv("patch_embed.proj", dim, 3, patch)
    for block in (f"blocks.{i}" for i in range(depth)):
        state |= make.norm(f"{block}.norm1") | make.linear(f"{block}.attn.qkv", 3 * dim, dim)
        state |= make.linear(f"{block}.attn.proj", dim, dim) | make.norm(f"{block}.norm2")
        state |= make.linear(f"{block}.mlp.fc1", 4 * dim, dim) | make.linear(f"{block}.mlp.fc2", dim, 4 * dim)
    return {prefix + key: value for key, value in (state | make.norm("norm")).items()}


def attention_pool_state(prefix: str, *, dim: int = 48) -> State:
    make = Maker(dim, seed=2)
    state = {"latent": make.normal(1, 1, dim)} | make.linear("q", dim, dim) | make.linear("kv", 2 * dim, dim)
    state |= make.linear("proj", dim, dim) | make.norm("norm")
    state |= make.linear("mlp.fc1", 4 * dim, dim) | make.linear("mlp.fc2", dim, 4 * dim)
    return {f"{prefix}attn_pool.{key}": value for key, value in state.items()}


def open_clip_siglip_state() -> State:
    """open_clip's SigLIP: timm's tower, a text tower under its own name, a bias beside the temperature."""
    text = {f"text.{key}": value for key, value in clip_text_state().items() if key != "logit_scale"}
    scales = {"logit_scale": torch.tensor([4.6]), "logit_bias": torch.tensor([-10.0])}
    return timm_vit_state("visual.trunk.", cls=False) | attention_pool_state("visual.trunk.") | text | scales


def synclr_state() -> State:
    state = timm_vit_state("module.visual.") | {"module.visual.mask_token": torch.ones(1, 1, 48)}
    return state | {"module.image_mlp.layer1.weight": torch.ones(4, 48), "module.logit_scale": torch.tensor(2.0)}


def siglip_state(*, dim: int = 48, heads: int = 3, depth: int = 2, side: int = 4) -> State:
    """big_vision's two towers, in Flax' shapes."""
    make = Maker(dim)
    state = {"embedding/kernel": make.normal(16, 16, 3, dim, std=1 / 28), "embedding/bias": make.normal(dim)}
    state["pos_embedding"] = make.normal(1, side * side, dim)
    for block in (f"Transformer/encoderblock_{i}" for i in range(depth)):
        state |= _flax_norm(make, f"{block}/LayerNorm_0") | _flax_norm(make, f"{block}/LayerNorm_1")
        state |= _flax_attention(make, block, heads) | _flax_mlp(make, block)
    state |= _flax_norm(make, "Transformer/encoder_norm")
    state |= {"MAPHead_0/probe": make.normal(1, 1, dim)} | _flax_norm(make, "MAPHead_0/LayerNorm_0")
    state |= _flax_attention(make, "MAPHead_0", heads) | _flax_mlp(make, "MAPHead_0")
    text = {"pos_embedding": make.normal(1, 7, dim), "Embed_0/embedding": make.normal(11, dim)}
    text |= {f"Encoder_0/encoderblock_0/{key}": value for key, value in _flax_mlp(make, "x").items()}
    both = {f"img/{key}": value for key, value in state.items()} | {f"txt/{key}": value for key, value in text.items()}
    return {f"params/{key}": value for key, value in (both | {"t": torch.ones(1), "b": torch.ones(1)}).items()}


def _flax_norm(make: Maker, name: str) -> State:
    return {f"{name}/scale": make.normal(make.dim, std=0.3, mean=1.0), f"{name}/bias": make.normal(make.dim)}


def _flax_mlp(make: Maker, name: str) -> State:
    state: State = {}
    for i, (rows, columns) in enumerate([(make.dim, 4 * make.dim), (4 * make.dim, make.dim)]):
        dense = f"{name}/MlpBlock_0/Dense_{i}"
        state |= {f"{dense}/kernel": make.normal(rows, columns, std=rows**-0.5), f"{dense}/bias": make.normal(columns)}
    return state


def _flax_attention(make: Maker, name: str, heads: int) -> State:
    dim, size = make.dim, make.dim // heads
    name = f"{name}/MultiHeadDotProductAttention_0"
    state = {f"{name}/out/kernel": make.normal(heads, size, dim, std=dim**-0.5), f"{name}/out/bias": make.normal(dim)}
    for part in ("query", "key", "value"):
        state |= {f"{name}/{part}/kernel": make.normal(dim, heads, size, std=dim**-0.5)}
        state |= {f"{name}/{part}/bias": make.normal(heads, size)}
    return state


def in_proteus(student: State, teacher: State) -> State:
    """What Proteus saves under `model`: student, teacher, and the heads between them."""
    state = {f"student.backbone.{key}": value for key, value in student.items()}
    state |= {f"teacher.backbone.{key}": value for key, value in teacher.items()}
    for head in ("patch_head", "token_head", "fea_head"):
        state |= {f"{head}.0.weight": torch.ones(48), f"{head}.1.weight": torch.ones(96, 48)}
    return state


# ---- forwards: final-norm tokens (B, prefix + N, D) of images in [0, 1]


def dinov3_forward(state: State, images: Tensor, *, heads: int) -> Tensor:
    image = _patches(state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], images, IMAGENET)
    rows, columns = image.shape[2:]
    x = image.flatten(2).mT
    prefix = torch.cat([state["cls_token"], state["storage_tokens"]], dim=1).expand(len(x), -1, -1)
    x = torch.cat([prefix, x], dim=1)
    angles = _angles(state["rope_embed.periods"], rows, columns)
    for block in _blocks(state, "blocks."):
        y = _norm(x, state, f"{block}.norm1", 1e-5)
        bias = state[f"{block}.attn.qkv.bias"] * state[f"{block}.attn.qkv.bias_mask"]
        q, k, v = (y @ state[f"{block}.attn.qkv.weight"].T + bias).unflatten(-1, (3, heads, -1)).unbind(2)
        y = _attend(_rotate(q, angles), _rotate(k, angles), v)
        x = x + state[f"{block}.ls1.gamma"] * _linear(y, state, f"{block}.attn.proj")
        y = _norm(x, state, f"{block}.norm2", 1e-5)
        if f"{block}.mlp.w1.weight" in state:
            gate = F.silu(_linear(y, state, f"{block}.mlp.w1"))
            y = _linear(gate * _linear(y, state, f"{block}.mlp.w2"), state, f"{block}.mlp.w3")
        else:
            y = _linear(F.gelu(_linear(y, state, f"{block}.mlp.fc1")), state, f"{block}.mlp.fc2")
        x = x + state[f"{block}.ls2.gamma"] * y
    return _norm(x, state, "norm", 1e-5)


def _angles(periods: Tensor, rows: int, columns: int) -> Tensor:
    """(rows * columns, head size): centres of patches in [-1, 1], y then x, the first half repeated."""
    y = 2 * (torch.arange(rows) + 0.5) / rows - 1
    x = 2 * (torch.arange(columns) + 0.5) / columns - 1
    place = torch.stack([y[:, None].expand(rows, columns), x.expand(rows, columns)], dim=-1).flatten(0, 1)
    angles = 2 * math.pi * place[:, :, None] / periods
    return torch.cat([angles.flatten(1)] * 2, dim=1)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(B, T, heads, d): rotate the last tokens, one for each row of angles."""
    rest, patch = x[:, : -len(angles)], x[:, -len(angles) :]
    first, second = patch.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([rest, patch * cos + turned * sin], dim=1)


def dinov3_convnext_forward(state: State, images: Tensor) -> Tensor:
    """The mean of the last map stands first, as its class token; everything is normed together."""
    x = (images - IMAGENET[0].view(3, 1, 1)) / IMAGENET[1].view(3, 1, 1)
    for i in range(4):
        x = _downsample(x, state, i)
        for block in _blocks(state, f"stages.{i}."):
            name = f"{block}.dwconv"
            y = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=3, groups=x.shape[1])
            y = _norm(y.permute(0, 2, 3, 1), state, f"{block}.norm", 1e-6)
            y = _linear(F.gelu(_linear(y, state, f"{block}.pwconv1")), state, f"{block}.pwconv2")
            x = x + (state[f"{block}.gamma"] * y).permute(0, 3, 1, 2)
    tokens = x.flatten(2).mT
    return _norm(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1), state, "norm", 1e-6)


def _downsample(x: Tensor, state: State, stage: int) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return _norm(x.permute(0, 2, 3, 1), state, name, 1e-6).permute(0, 3, 1, 2)

    name = f"downsample_layers.{stage}"
    if stage == 0:
        return norm(F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], stride=4), f"{name}.1")
    return F.conv2d(norm(x, f"{name}.0"), state[f"{name}.1.weight"], state[f"{name}.1.bias"], stride=2)


def clip_forward(state: State, images: Tensor, *, is_quick: bool = True) -> Tensor:
    """Keys begin at `visual.`; heads are 64 wide. OpenAI norms the class token only, here all tokens are normed."""
    state = {key.removeprefix("visual."): value.float() for key, value in state.items() if key.startswith("visual.")}
    x = _patches(state["conv1.weight"], None, images, OPENAI).flatten(2).mT
    x = torch.cat([state["class_embedding"].expand(len(x), 1, -1), x], dim=1) + state["positional_embedding"]
    x = _norm(x, state, "ln_pre", 1e-5)
    for block in _blocks(state, "transformer.resblocks."):
        y = _norm(x, state, f"{block}.ln_1", 1e-5)
        y = y @ state[f"{block}.attn.in_proj_weight"].T + state[f"{block}.attn.in_proj_bias"]
        q, k, v = y.unflatten(-1, (3, -1, 64)).unbind(2)
        x = x + _linear(_attend(q, k, v), state, f"{block}.attn.out_proj")
        y = _linear(_norm(x, state, f"{block}.ln_2", 1e-5), state, f"{block}.mlp.c_fc")
        y = y * torch.sigmoid(1.702 * y) if is_quick else F.gelu(y)
        x = x + _linear(y, state, f"{block}.mlp.c_proj")
    return _norm(x, state, "ln_post", 1e-5)


def timm_vit_forward(
    state: State, images: Tensor, *, heads: int, statistics: Tensor, prefix: str = "", cls: bool = True
) -> Tensor:
    """SynCLR's encoder, and the trunk of open_clip's SigLIP: pre-norm blocks, exact GELU, eps 1e-6."""
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = _patches(weight, bias, images, statistics).flatten(2).mT
    if cls:
        x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + state["pos_embed"]
    for block in _blocks(state, "blocks."):
        qkv = _linear(_norm(x, state, f"{block}.norm1", 1e-6), state, f"{block}.attn.qkv")
        x = x + _linear(_attend(*qkv.unflatten(-1, (3, heads, -1)).unbind(2)), state, f"{block}.attn.proj")
        y = F.gelu(_linear(_norm(x, state, f"{block}.norm2", 1e-6), state, f"{block}.mlp.fc1"))
        x = x + _linear(y, state, f"{block}.mlp.fc2")
    return _norm(x, state, "norm", 1e-6)


def siglip_forward(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled (B, D) and encoded (B, N, D), as big_vision computes them: GELU in its tanh form."""
    state = {key.removeprefix("params/img/"): v for key, v in state.items() if key.startswith("params/img/")}
    x = _patches(state["embedding/kernel"].permute(3, 2, 0, 1), state["embedding/bias"], images, HALF).flatten(2).mT
    x = x + state["pos_embedding"]
    for block in _blocks(state, "Transformer/encoderblock_", separator="/"):
        y = _flax_normed(x, state, f"{block}/LayerNorm_0")
        x = x + _flax_attended(y, y, state, block)
        x = x + _flax_fed(_flax_normed(x, state, f"{block}/LayerNorm_1"), state, block)
    x = _flax_normed(x, state, "Transformer/encoder_norm")
    pooled = _flax_attended(state["MAPHead_0/probe"].expand(len(x), -1, -1), x, state, "MAPHead_0")
    pooled = pooled + _flax_fed(_flax_normed(pooled, state, "MAPHead_0/LayerNorm_0"), state, "MAPHead_0")
    return pooled[:, 0], x


def _flax_normed(x: Tensor, state: State, name: str) -> Tensor:
    return _norm(x, {"x.weight": state[f"{name}/scale"], "x.bias": state[f"{name}/bias"]}, "x", 1e-6)


def _flax_fed(x: Tensor, state: State, name: str) -> Tensor:
    dense = f"{name}/MlpBlock_0/Dense_"
    x = F.gelu(x @ state[f"{dense}0/kernel"] + state[f"{dense}0/bias"], approximate="tanh")
    return x @ state[f"{dense}1/kernel"] + state[f"{dense}1/bias"]


def _flax_attended(queries: Tensor, keys: Tensor, state: State, name: str) -> Tensor:
    name = f"{name}/MultiHeadDotProductAttention_0"

    def project(x: Tensor, part: str) -> Tensor:
        return torch.einsum("btc,chd->bthd", x, state[f"{name}/{part}/kernel"]) + state[f"{name}/{part}/bias"]

    y = _attend(project(queries, "query"), project(keys, "key"), project(keys, "value"))
    return y @ state[f"{name}/out/kernel"].flatten(0, 1) + state[f"{name}/out/bias"]


def _patches(weight: Tensor, bias: Tensor | None, images: Tensor, statistics: Tensor) -> Tensor:
    mean, std = statistics.view(2, 3, 1, 1)
    return F.conv2d((images - mean) / std, weight, bias, stride=weight.shape[-1])


def _blocks(state: State, prefix: str, separator: str = ".") -> list[str]:
    numbers = {int(key.removeprefix(prefix).split(separator)[0]) for key in state if key.startswith(prefix)}
    return [f"{prefix}{i}" for i in sorted(numbers)]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, T, heads, d) each, to (B, T, heads * d)."""
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def _linear(x: Tensor, state: State, name: str) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]
