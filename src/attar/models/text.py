"""Text towers: sentences in, embeddings in the space of an image tower out. For now those of open_clip."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Provenance, evaluating
from attar.models.files import StateDict, noted
from attar.models.layouts import Converted, convert
from attar.models.official import OPEN_CLIP_TEXT
from attar.models.open_clip_files import model_config, open_clip_library, open_weights, published_tag
from attar.models.references import parse_reference
from attar.models.weights import check_keys
from attar.utils.seeding import seeded_torch

_LARGEST_SCALE = 100.0  # CLIP's training caps it there


class TextTower(nn.Module):
    """A text encoder with its tokeniser.

    Call it on token numbers to train it, `encode(texts)` to use it frozen.

    Attributes:
        model: The encoder; its state dict is what ships.
        embed_dim: Width E of the embeddings, that of the image tower's projection.
        context_length: Token numbers L of a sentence, filled up or cut.
        logit_scale: What was learned to multiply cosines by, None where the file has none or weights are random.
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
    ) -> None:
        super().__init__()
        self.model, self._tokeniser = model, tokeniser
        self.embed_dim, self.context_length = embed_dim, context_length
        self.logit_scale, self.source = logit_scale, source

    def tokenise(self, texts: list[str]) -> Tensor:
        """(m, L) int64 token numbers; a sentence that is too long is cut, as open_clip does."""
        return self._tokeniser(texts)

    def forward(self, tokens: Tensor) -> Tensor:
        """(m, E) embeddings of (m, L) token numbers, with gradient, in the module's current mode."""
        return self.model(tokens)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """(m, E) float32 embeddings of m sentences, not normalised, without gradient and in eval mode."""
        with evaluating(self):
            return self(self.tokenise(texts).to(next(self.parameters()).device)).float()  # type: ignore[no-any-return]


def load_text_tower(
    reference: str, *, weights: str | Path = "pretrained", trust_torchscript: bool = False, seed: int = 0
) -> TextTower:
    """The text tower of a model on the CPU, in eval mode; its image tower is neither built nor kept.

    Args:
        reference: `open_clip:NAME?pretrained=TAG`, as for the image tower.
        weights: `pretrained`, `random`, or a file with the state dict of the whole model or of the text tower alone.
        trust_torchscript: Read a file that is a TorchScript archive, which can run code.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If the reference has no text tower that can be built here.
        WeightsError: If the weights are missing or one key does not fit.

    Example:
        >>> tower = load_text_tower("open_clip:ViT-B-32", weights="random")
        >>> tower.encode(["a photo of a cat.", "a photo of a dog."]).shape
        torch.Size([2, 512])
    """
    parsed = parse_reference(reference)
    if parsed.kind != "open_clip":
        raise ModelReferenceError(f"'{reference}' has no text tower that attar reads. Give open_clip:NAME.")
    library = open_clip_library()
    config = model_config(library, parsed)
    tag = published_tag(library, parsed, config, weights)
    with seeded_torch(seed, "initialisation"):
        model = _build(config, reference)
    source, scale = Provenance(reference), None
    if weights != "random":
        file, state, part = open_weights(
            library, parsed.name, tag, weights, trust_torchscript=trust_torchscript, has_gelu=not _is_foreign(config)
        )
        explained = _load(model, file, state).explained
        source = Provenance.of_files(
            reference, [file], weights=noted("open_clip", part), licence="unknown", explained=explained
        )
        scale = _logit_scale(state)
    return TextTower(
        model,
        _tokeniser(library, parsed.name),
        embed_dim=config["embed_dim"],
        context_length=config["text_cfg"].get("context_length", library.tokenizer.DEFAULT_CONTEXT_LENGTH),
        logit_scale=scale,
        source=source,
    ).eval()


def _is_foreign(config: dict[str, Any]) -> bool:
    """Whether the text encoder is one of transformers, with an activation of its own."""
    return "hf_model_name" in config["text_cfg"]


def _build(config: dict[str, Any], reference: str) -> nn.Module:
    """The text tower with fresh weights."""
    text = {**config["text_cfg"], "output_tokens": False}
    if _is_foreign(config):
        text["hf_model_pretrained"] = False
    try:
        from open_clip.model import _build_text_tower

        model: nn.Module = _build_text_tower(config["embed_dim"], text, quick_gelu=config.get("quick_gelu", False))
    except Exception as error:  # constructors raise many kinds, other versions of open_clip ImportError
        raise ModelReferenceError(f"the text tower of '{reference}' cannot be built: {_shown(error)}.") from error
    return model


def _load(model: nn.Module, file: Path, state: StateDict) -> Converted:
    """Load strictly the text tower of a whole model, or one alone."""
    wanted: StateDict = model.state_dict()
    layout, prefix = next(
        (layout, prefix) for layout in OPEN_CLIP_TEXT if (prefix := layout.prefix_in(state)) is not None
    )
    converted = convert(state, wanted, layout, prefix)
    check_keys(converted, wanted, state=state, path=file)
    model.load_state_dict(converted.state, strict=True)
    return converted


def _logit_scale(state: StateDict) -> float | None:
    learned = state.get("logit_scale", state.get("module.logit_scale"))
    return None if learned is None else min(math.exp(learned.item()), _LARGEST_SCALE)


def _shown(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...").rstrip(".")


def _tokeniser(library: Any, name: str) -> Callable[[list[str]], Tensor]:
    try:
        tokeniser: Callable[[list[str]], Tensor] = library.get_tokenizer(name)
    except Exception as error:  # hub, web and transformers raise many kinds
        raise ModelReferenceError(
            f"the tokeniser of open_clip:{name} cannot be made ({_shown(error)})."
            " All but CLIP's own come from the model hub: fetch it once where there is a network."
        ) from None
    return tokeniser
