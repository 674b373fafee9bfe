"""Text towers of open_clip, with the tokeniser that it names for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attar.errors import ModelReferenceError
from attar.models.backbone import Provenance
from attar.models.files import StateDict, noted
from attar.models.layouts import Converted, convert
from attar.models.licences import licence_beside, licence_of_tag
from attar.models.official import OPEN_CLIP_TEXT
from attar.models.open_clip_files import folder_in, model_config, open_clip_library, open_weights, published_tag
from attar.models.references import Reference
from attar.models.text import TextTower, learned_scale, shown
from attar.models.weights import check_keys
from attar.utils.seeding import seeded_torch


def load_open_clip_text(
    reference: Reference, *, weights: str | Path = "pretrained", trust_torchscript: bool = False, seed: int = 0
) -> TextTower:
    """The text tower of an open_clip model on the CPU, in eval mode; its image tower is neither built nor kept.

    Args:
        reference: `open_clip:NAME?pretrained=TAG` or a folder, as for the image tower.
        weights: `pretrained`, `random`, or a file with the state dict of the whole model or of the text tower alone.
        trust_torchscript: Read a file that is a TorchScript archive, which can run code.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If open_clip is missing, or cannot build the text tower or its tokeniser.
        WeightsError: If the weights are missing or one key does not fit.
    """
    library, name = open_clip_library(), f"open_clip:{reference}"
    config = model_config(library, reference)
    tag = published_tag(library, reference, weights)
    with seeded_torch(seed, "initialisation"):
        model = build_text(config, name)
    source, scale = Provenance(name), None
    if weights != "random":
        file, state, part = open_weights(
            library, reference, tag, weights, trust_torchscript=trust_torchscript, has_gelu=not _is_foreign(config)
        )
        explained = _load(model, file, state).explained
        source = Provenance.of_files(
            name,
            [file],
            weights=noted("open_clip", part),
            licence=licence_beside(file) or licence_of_tag(reference.name, tag),
            explained=explained,
        )
        scale = learned_scale(state)
    return TextTower(
        model,
        _tokeniser(library, reference),
        embed_dim=config["embed_dim"],
        context_length=config["text_cfg"].get("context_length", library.tokenizer.DEFAULT_CONTEXT_LENGTH),
        logit_scale=scale,
        source=source,
        config={key: config[key] for key in ("text_cfg", "quick_gelu") if key in config},
    ).eval()


def _is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether the text encoder is one of transformers, with an activation of its own."""
    return "hf_model_name" in config["text_cfg"]


def build_text(config: Mapping[str, Any], reference: str) -> nn.Module:
    """The text tower of open_clip's description of a model, with fresh weights of torch's global generator.

    Raises:
        ModelReferenceError: If open_clip can build none.
    """
    text = {**config["text_cfg"], "output_tokens": False}
    if _is_foreign(config):
        text["hf_model_pretrained"] = False
    try:
        from open_clip.model import _build_text_tower

        model: nn.Module = _build_text_tower(config["embed_dim"], text, quick_gelu=config.get("quick_gelu", False))
    except Exception as error:  # constructors raise many kinds, other versions of open_clip ImportError
        raise ModelReferenceError(f"the text tower of '{reference}' cannot be built: {shown(error)}.") from error
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


def _tokeniser(library: Any, reference: Reference) -> Callable[[list[str]], Tensor]:
    folder = folder_in(reference)
    try:
        tokeniser: Callable[[list[str]], Tensor] = library.get_tokenizer(
            reference.name if folder is None else f"local-dir:{folder}"
        )
    except Exception as error:  # hub, web and transformers raise many kinds
        raise ModelReferenceError(
            f"the tokeniser of open_clip:{reference.name} cannot be made ({shown(error)})."
            + (
                " All but CLIP's own come from the model hub: fetch it once where there is a network."
                if folder is None
                else " All but CLIP's own lie beside the weights: copy tokenizer.json and tokenizer_config.json anew."
            )
        ) from None
    return tokeniser
