"""A teacher's linear classifier, read from a file: what logit distillation needs beside the backbone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from attar.errors import WeightsError
from attar.models.backbone import Backbone
from attar.models.files import StateDict, read_state_dict, wrapper_of
from attar.types import Tokens

_NAMES = ("", "fc.", "head.", "head.fc.", "classifier.", "linear_head.")


class LinearClassifier(nn.Linear):
    """Logits of tokens: from the class token, or from class token and mean patch side by side (DINOv2's own heads)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, embed_dim: int) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.uses_patches = weight.shape[1] == 2 * embed_dim
        with torch.no_grad():
            self.weight.copy_(weight)
            if bias is not None:
                self.bias.copy_(bias)

    def logits(self, tokens: Tokens) -> Tensor:
        """(B, K)."""
        features = torch.cat([tokens.cls, tokens.patch.mean(1)], dim=1) if self.uses_patches else tokens.cls
        return self(features)  # type: ignore[no-any-return]


def load_classifier(path: Path, teacher: Backbone) -> LinearClassifier:
    """Read a linear classifier on a teacher's features, frozen.

    The file holds one weight (K, D) with its bias (K,), under no name or the usual ones (`fc`, `head`, `classifier`,
    `linear_head`); keys of a backbone beside it are passed over. A weight (K, 2 D) reads class token and mean patch,
    as the one-layer heads that come with DINOv2.

    Raises:
        WeightsError: If the file cannot be read, holds no such pair or several, or was made for other features.
    """
    found = read_state_dict(path)
    state = {key.removeprefix(wrapper_of(found)): value for key, value in found.items()}
    name = _the_one_name(state, path)
    weight, bias = state[f"{name}weight"], state.get(f"{name}bias")
    if weight.shape[1] not in (teacher.embed_dim, 2 * teacher.embed_dim):
        raise WeightsError(
            f"classifier {path} reads {weight.shape[1]} features, the teacher {teacher.source.name} has"
            f" {teacher.embed_dim}. Give one trained on its class token, or on class token and mean patch side by side."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise WeightsError(
            f"classifier {path}: {name}bias is {tuple(bias.shape)}, {name}weight {tuple(weight.shape)}."
            " Both must have one row for each class. Save them again together."
        )
    if len(weight) < 2 or not weight.is_floating_point():
        raise WeightsError(
            f"classifier {path}: {name}weight is {tuple(weight.shape)} of {weight.dtype}. It must be (classes,"
            " features) of floats, with two classes at least: the share of a single one is always 1."
        )
    _check_pooling(state, teacher, path)
    return LinearClassifier(weight, bias, embed_dim=teacher.embed_dim).eval().requires_grad_(False)


def _check_pooling(state: StateDict, teacher: Backbone, path: Path) -> None:
    """Refuse a whole checkpoint whose classifier does not read the class token: its width would not tell."""
    pooling = getattr(teacher.model, "global_pool", None)  # a module where there is no class token to pass over
    pools_patches = isinstance(pooling, str) and pooling not in ("", "token")
    has_cls = getattr(teacher.model, "cls_token", None) is not None
    if (len(state) > 2 and has_cls and pools_patches) or "head_dist.weight" in state:
        raise WeightsError(
            f"classifier {path} comes with a whole {teacher.source.name}, which classifies by other features than its"
            " class token. Train a linear classifier on the class token and give its weight and bias alone."
        )


def _the_one_name(state: StateDict, path: Path) -> str:
    found = [name for name in _NAMES if (weight := state.get(f"{name}weight")) is not None and weight.ndim == 2]
    if len(found) == 1:
        return found[0]
    raise WeightsError(
        f"classifier {path} holds {len(found) or 'no'} linear classifiers among its {len(state)} keys"
        f" ({', '.join(list(state)[:4])}). Expected one weight (classes, features) named"
        f" {', '.join(f'{name}weight' for name in _NAMES)}."
    )
