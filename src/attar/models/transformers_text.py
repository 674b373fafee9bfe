"""`hf:` references: the text tower of a CLIP or SigLIP of transformers, with the tokeniser in its directory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Provenance
from attar.models.files import noted
from attar.models.references import Reference
from attar.models.text import TextTower, learned_scale, ratio_of, shown
from attar.models.transformers import import_transformers, quiet
from attar.models.transformers_folder import (
    WHOLE_MODELS,
    folder_of,
    licence_of,
    load_strictly,
    part_of,
    read_config,
    read_kind,
    weight_files,
)
from attar.utils.seeding import seeded_torch

_CLASSES = {
    "clip": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip2": "Siglip2TextModel",
}
_TOKENISER = ["tokenizer*", "*.model", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
_VOCABULARIES = ("tokenizer.json", "vocab.json", "*.model")
_SCALE = re.compile(r"logit_(scale|bias)$")
_EXPLAINED = {
    re.compile(r"vision_model\.|visual_projection"): "image tower",
    re.compile(r".*\.position_ids$"): "numbers of positions, which transformers counts itself",
}
_OLD_END = 2  # what configurations of CLIP say of the last token where they are wrong: transformers takes the largest


class TransformersText(nn.Module):
    """A text encoder of transformers as a function of token numbers alone.

    No mask of filled-up places is needed: CLIP's causal one hides them from the last token, and SigLIP was trained
    with them in sight.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """(m, E), projected, of token numbers (m, L)."""
        output = self.model(input_ids=tokens)
        return output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output  # type: ignore[no-any-return]


def load_transformers_text(reference: Reference, *, weights: str | Path = "pretrained", seed: int = 0) -> TextTower:
    """The text tower of a clip or siglip directory on the CPU, in eval mode; its image tower is not built.

    Args:
        reference: `hf:DIR`, `hf:OWNER/REPOSITORY` or `hf:OWNER/REPOSITORY@REVISION`.
        weights: `pretrained` (the safetensors there), `random`, or a file with their keys.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If transformers is missing, or the directory holds no text tower or no tokeniser.
        WeightsError: If the weights are missing or one key does not fit.
    """
    library, name = import_transformers(), f"hf:{reference.name}"
    folder = folder_of(reference, weights, also=_TOKENISER)
    kind = read_kind(folder)
    if kind not in WHOLE_MODELS:
        raise ModelReferenceError(f"'{name}' is a model of type {kind} and has no text tower. Give a clip or siglip.")
    whole = read_config(library, folder)
    config, cls = whole.text_config, getattr(library, _CLASSES[kind])
    if kind == "clip":
        config.projection_dim = whole.projection_dim  # whatever its text part says
    source, scale = Provenance(name), None
    if weights == "random":
        with seeded_torch(seed, "initialisation"):
            model: nn.Module = cls(config)
    else:
        files = weight_files(folder) if weights == "pretrained" else [Path(weights).expanduser()]
        state, explained, part = part_of(files, _EXPLAINED)
        scale = learned_scale(state)
        for key in [key for key in state if _SCALE.match(key)]:
            del state[key]
            explained[key] = "temperature or bias of the contrastive loss"
        model = load_strictly(cls, config, state, where=", ".join(map(str, files)))
        source = Provenance.of_files(
            name,
            files,
            weights=noted("transformers", part),
            licence=licence_of(folder) if weights == "pretrained" else "unknown",
            explained=explained,
        )
    length = int(config.max_position_embeddings)
    return TextTower(
        TransformersText(model),
        _tokeniser(library, folder, length, int(config.vocab_size)),
        embed_dim=int(config.projection_dim if kind == "clip" else config.projection_size),
        context_length=length,
        logit_scale=scale,
        source=source,
        config=_in_open_clips_words(kind, config, folder),
    ).eval()


class Tokeniser:
    """A tokeniser of transformers, from sentences to as many token numbers each; its files can be written again."""

    def __init__(self, tokeniser: Any, length: int) -> None:
        self.tokeniser, self.length = tokeniser, length
        tokeniser.padding_side = "right"  # as all were trained; SigLIP 2's is told so by its directory alone

    def __call__(self, texts: list[str]) -> Tensor:
        """(m, length) int64 of m sentences, cut or filled up."""
        found = self.tokeniser(
            texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return found["input_ids"].to(torch.int64)  # type: ignore[no-any-return]

    def save_pretrained(self, folder: Path) -> None:
        """Write its files, as open_clip's tokenisers do."""
        self.tokeniser.save_pretrained(folder)


def _tokeniser(library: Any, folder: Path, length: int, vocab_size: int) -> Tokeniser:
    # transformers would make one that knows no word
    if not any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise ModelReferenceError(
            f"{folder} holds no tokeniser ({', '.join(_VOCABULARIES)}). Copy tokenizer.json and tokenizer_config.json"
            " beside the weights."
        )
    try:
        with quiet():
            tokeniser = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # readers of tokenisers raise many kinds; each means that there is none to use
        raise ModelReferenceError(
            f"the tokeniser in {folder} cannot be read by transformers ({shown(error)})."
            " Copy tokenizer.json and tokenizer_config.json anew."
        ) from None
    if len(tokeniser) > vocab_size:
        raise ModelReferenceError(
            f"the tokeniser in {folder} has {len(tokeniser):,} tokens, the text tower {vocab_size:,}: it is another"
            " model's. Copy tokenizer.json and tokenizer_config.json of this one."
        )
    return Tokeniser(tokeniser, length)


def _in_open_clips_words(kind: str, config: Any, folder: Path) -> dict[str, Any]:
    """open_clip's description of such a tower: what a small student of it is built by."""
    text: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "mlp_ratio": ratio_of(config.intermediate_size, config.hidden_size),
        "hf_tokenizer_name": str(folder),
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }
    if kind == "clip":
        is_old = config.eos_token_id == _OLD_END
        text |= {"pool_type": "argmax"} if is_old else {"pool_type": "eos", "eos_id": config.eos_token_id}
        return {"text_cfg": text, "quick_gelu": config.hidden_act == "quick_gelu"}
    text |= {"pool_type": "last", "no_causal_mask": True, "proj_bias": True, "act_kwargs": {"approximate": "tanh"}}
    return {"text_cfg": text, "quick_gelu": False}
