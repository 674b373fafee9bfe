"""Parameter groups other than the usual two: rates that fall through the blocks, embeddings that do not decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

Groups = Callable[[nn.Module, float], list[dict[str, Any]]]
"""(learner, weight decay) -> parameter groups."""

_EMBEDDINGS = (  # DIME-FM's list, and timm's names of the same tensors
    *("relative_position_bias_table", "absolute_pos_embed", "positional_embedding", "token_embedding"),
    *("pos_embed", "cls_token"),
)
_TABLES = (*_EMBEDDINGS, "position_embedding")  # and transformers' name


def embeddings_spared(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for `build_state` in which tables of positions and tokens do not decay either (spec dime_fm §3)."""
    spared = _named(learner, _EMBEDDINGS)
    return param_groups_weight_decay(learner, weight_decay, no_weight_decay_list=list(spared))  # type: ignore[no-any-return]


def tables_apart(groups: list[dict[str, Any]], learner: nn.Module) -> list[dict[str, Any]]:
    """The same groups for Muon, which by shape alone takes tables of positions and tokens for matrices.

    A row of theirs is a vector, which is added or looked up, and AdamW's.
    """
    tables = {id(parameter) for parameter in _named(learner, _TABLES).values()}
    parts = []
    for group in groups:
        parts.append(group | {"params": [p for p in group["params"] if id(p) not in tables]})
        parts.append(group | {"params": [p for p in group["params"] if id(p) in tables], "use_fallback": True})
    return [part for part in parts if part["params"]]


def _named(learner: nn.Module, words: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Parameters that have one of these words in their name."""
    return {name: p for name, p in learner.named_parameters() if any(part in words for part in name.split("."))}


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
