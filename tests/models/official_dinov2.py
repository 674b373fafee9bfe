"""DINOv2's forward pass and file layout, written out in plain torch from the published architecture.

Shares no line with attar or timm: it works on a state dict with the official key names, so that loading can be
checked token by token without the real files.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def random_state(
    *, dim: int = 384, depth: int = 2, registers: int = 0, swiglu: bool = False, side: int = 37, seed: int = 0
) -> State:
    """A state dict in the official layout. Every entry is large enough to show in the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": normal(rows, columns, std=columns**-0.5), f"{name}.bias": normal(rows, std=0.3)}

    def norm(name: str) -> State:
        return {f"{name}.weight": normal(dim, std=0.2, mean=1.0), f"{name}.bias": normal(dim, std=0.2)}

    # The residual stream is small (0.02), as in trained models with LayerScale: so the norms' eps shows as well.
    state = {"cls_token": normal(1, 1, dim, std=0.02), "pos_embed": normal(1, 1 + side * side, dim, std=0.02)}
    if registers:
        state["register_tokens"] = normal(1, registers, dim, std=0.02)
    state["mask_token"] = normal(1, dim, std=1.0)
    state["patch_embed.proj.weight"] = normal(dim, 3, 14, 14, std=0.02 / (3 * 14 * 14) ** 0.5)
    state["patch_embed.proj.bias"] = normal(dim, std=0.02)
    for i in range(depth):
        block = f"blocks.{i}"
        state |= norm(f"{block}.norm1") | linear(f"{block}.attn.qkv", 3 * dim, dim)
        state |= linear(f"{block}.attn.proj", dim, dim) | {f"{block}.ls1.gamma": normal(dim, std=0.02)}
        state |= norm(f"{block}.norm2")
        if swiglu:
            hidden = (int(dim * 4 * 2 / 3) + 7) // 8 * 8
            state |= linear(f"{block}.mlp.w12", 2 * hidden, dim) | linear(f"{block}.mlp.w3", dim, hidden)
        else:
            state |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
        state[f"{block}.ls2.gamma"] = normal(dim, std=0.02)
    return state | norm("norm")


def forward(state: State, images: Tensor, *, num_heads: int) -> dict[str, Tensor]:
    """Final-norm tokens of images (B, 3, H, W) in [0, 1]: `cls` (B, D), `registers` (B, R, D), `patch` (B, N, D)."""
    image = F.conv2d((images - MEAN) / STD, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = image.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1)
    x = x + positions(state, image.shape[2], image.shape[3])
    registers = state.get("register_tokens", x[:1, :0])
    x = torch.cat([x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]], dim=1)
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    for i in range(depth):
        x = _block(state, f"blocks.{i}", x, num_heads)
    x = _norm(state, "norm", x)
    count = 1 + registers.shape[1]
    return {"cls": x[:, 0], "registers": x[:, 1:count], "patch": x[:, count:]}


def positions(state: State, rows: int, columns: int) -> Tensor:
    """The table (1, 1 + rows * columns, D): raw where it fits, else bicubic as the hub entries configure it."""
    table = state["pos_embed"]
    side = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (side, side):
        return table
    image = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if "register_tokens" in state:  # the hub's models with registers: offset 0, antialias
        image = F.interpolate(image, (rows, columns), mode="bicubic", antialias=True)
    else:  # all others: offset 0.1, no antialias
        factor = [(rows + 0.1) / side, (columns + 0.1) / side]
        image = F.interpolate(image, scale_factor=factor, mode="bicubic", antialias=False)
    return torch.cat([table[:, :1], image.flatten(2).transpose(1, 2)], dim=1)


def _block(state: State, name: str, x: Tensor, num_heads: int) -> Tensor:
    x = x + state[f"{name}.ls1.gamma"] * _attention(state, f"{name}.attn", _norm(state, f"{name}.norm1", x), num_heads)
    normed = _norm(state, f"{name}.norm2", x)
    if f"{name}.mlp.w12.weight" in state:
        gate, value = _linear(state, f"{name}.mlp.w12", normed).chunk(2, dim=-1)
        hidden = _linear(state, f"{name}.mlp.w3", gate * torch.sigmoid(gate) * value)
    else:
        before = _linear(state, f"{name}.mlp.fc1", normed)
        hidden = _linear(state, f"{name}.mlp.fc2", before * 0.5 * (1 + torch.erf(before / math.sqrt(2))))
    return x + state[f"{name}.ls2.gamma"] * hidden


def _attention(state: State, name: str, x: Tensor, num_heads: int) -> Tensor:
    qkv = _linear(state, f"{name}.qkv", x).unflatten(-1, (3, num_heads, -1))  # (B, T, 3, heads, d)
    q, k, v = qkv.unbind(2)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
    return _linear(state, f"{name}.proj", torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]
