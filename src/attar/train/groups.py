"""Parameter groups other than the usual two: rates that fall through the blocks, embeddings that do not decay."""

from __future__ import annotations

from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from attar.train.state import Groups

_EMBEDDINGS = (  # DIME-FM's list, and timm's names of the same tensors
    *("relative_position_bias_table", "absolute_pos_embed", "positional_embedding", "token_embedding"),
    *("pos_embed", "cls_token"),
)


def embeddings_spared(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for `build_state` in which tables of positions and tokens do not decay either (spec dime_fm §3).

    Nor are they matrices to Muon: a row of theirs is a vector, which is added or looked up.
    """
    spared = [name for name, _ in learner.named_parameters() if any(part in _EMBEDDINGS for part in name.split("."))]
    still, decaying = param_groups_weight_decay(learner, weight_decay, no_weight_decay_list=spared)
    return [still | {"use_fallback": True}, decaying]


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
