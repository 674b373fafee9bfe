"""Text towers: sentences in, embeddings in the space of an image tower out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.backbone import Provenance, evaluating

_LARGEST_SCALE = 100.0


class TextTower(nn.Module):
    """A text encoder with its tokeniser.

    Call it on token numbers to train it, `encode(texts)` to use it frozen.

    Attributes:
        model: The encoder; its state dict is what ships.
        tokenise: From m sentences to (m, L) int64 token numbers; a sentence that is too long is cut.
        embed_dim: Width E of the embeddings, that of the image tower's projection.
        context_length: Token numbers L of a sentence, filled up or cut.
        logit_scale: What was learned to multiply cosines by, None where the file has none or weights are random.
        config: What of open_clip's description of a model builds this tower: `text_cfg` and `quick_gelu`.
        source: Provenance of the weights.
    """

    def __init__(
        self,
        model: nn.Module,
        tokeniser: Callable[[list[str]], Tensor],
        *,
        embed_dim: int,
        context_length: int,
        logit_scale: float | None,
        source: Provenance,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.tokenise = model, tokeniser
        self.embed_dim, self.context_length = embed_dim, context_length
        self.logit_scale, self.source, self.config = logit_scale, source, config

    def forward(self, tokens: Tensor) -> Tensor:
        """(m, E) embeddings of (m, L) token numbers, with gradient, in the module's current mode."""
        return self.model(tokens)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """(m, E) float32 embeddings of m sentences, not normalised, without gradient and in eval mode."""
        with evaluating(self):
            return self(self.tokenise(texts).to(next(self.parameters()).device)).float()  # type: ignore[no-any-return]


def ratio_of(hidden: int, width: int) -> float:
    """The `mlp_ratio` of which open_clip makes so many hidden channels: it cuts the product off, not rounds it."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def learned_scale(state: Mapping[str, Tensor]) -> float | None:
    """The scale of cosines in a whole model's state dict, capped as in CLIP's training but not in SigLIP's."""
    state = {key.removeprefix("module."): value for key, value in state.items() if "logit_" in key}
    if (learned := state.get("logit_scale")) is None:
        return None
    scale = math.exp(learned.item())
    return scale if "logit_bias" in state else min(scale, _LARGEST_SCALE)


def shown(error: Exception) -> str:
    """Another library's complaint in at most a line, without its full stop."""
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...").rstrip(".")
