"""Low-rank additions to linear layers (LoRA, Hu et al. 2021), which merge into the weights when they have learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attar.errors import ModelReferenceError

_LAYERS = ("qkv", "proj", "fc1", "fc2", "q_proj", "k_proj", "v_proj", "out_proj", "query", "key", "value", "dense")


class LowRank(nn.Module):
    """weight + alpha / rank * up @ down; `up` starts at zero, so that nothing changes before the first step."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.empty(rank, columns, device=weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (rows, columns) with the addition."""
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(model: nn.Module, *, rank: int, alpha: float) -> list[str]:
    """Freeze a model but for low-rank additions to the linear layers of its attention and MLP blocks.

    Returns:
        Names of these layers.

    Raises:
        ModelReferenceError: If it has none, as a conv net.
    """
    model.requires_grad_(False)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _LAYERS
    }
    if not layers:
        raise ModelReferenceError(
            f"the teacher has no linear layers named {', '.join(_LAYERS[:4])} to add to. Try --adapt.mode full or head."
        )
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
    return list(layers)


def merge_low_rank(model: nn.Module) -> None:
    """Put the additions into the weights: the model is an ordinary one again, with equal outputs."""
    for module in list(model.modules()):
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
