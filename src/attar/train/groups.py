"""Parameter groups whose learning rate falls from the head down through the blocks."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from attar.train.state import Groups


def layer_decay_groups(body: nn.Module, head: nn.Module, *, decay: float, head_scale: float) -> Groups:
    """Groups of a body and its head, for `build_state`.

    Args:
        body: Each block of it learns at `decay` times the rate of the next one; a model of another library than timm,
            which does not tell its blocks, at one rate.
        head: Learns at `head_scale` times the run's rate.
        decay: In (0, 1].
        head_scale: Above 0.
    """

    def groups(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
        if hasattr(body, "group_matcher"):
            found = param_groups_layer_decay(body, weight_decay, layer_decay=decay)
        else:
            found = param_groups_weight_decay(body, weight_decay)
        return [*found, *({**group, "lr_scale": head_scale} for group in param_groups_weight_decay(head, weight_decay))]

    return groups
