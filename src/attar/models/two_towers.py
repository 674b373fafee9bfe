"""Models of images and sentences: both towers of one reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from attar.errors import ModelReferenceError
from attar.models.backbone import Backbone
from attar.models.load import load_backbone
from attar.models.open_clip_files import meant_here
from attar.models.open_clip_text import load_open_clip_text
from attar.models.references import parse_reference
from attar.models.text import TextTower
from attar.models.transformers_folder import WHOLE_MODELS, folder_of, is_transformers_folder, read_kind
from attar.models.transformers_text import load_transformers_text


@dataclass(frozen=True)
class TwoTowers:
    """A model of images and sentences.

    Attributes:
        image: Its `embed` gives (B, E), projected.
        text: Its `encode` gives (m, E) in the same space; with tokeniser and learned scale.
    """

    image: Backbone
    text: TextTower


def load_two_towers(
    reference: str,
    *,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    trust_torchscript: bool = False,
    seed: int = 0,
) -> TwoTowers:
    """Both towers on the CPU, in eval mode, each loaded strictly. Arguments as in `load_backbone`.

    Args:
        reference: `open_clip:NAME?pretrained=TAG`, a directory of open_clip, or `hf:DIR` or `hf:OWNER/REPOSITORY` of a
            clip or siglip.
        weights: `pretrained`, `random`, or a file with the state dict of the whole model.
        img_size: Input size in pixels; the model's own by default.
        trust_torchscript: Read a TorchScript archive (OpenAI's CLIP), which can run code.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If the reference has no two towers that can be built here, or their spaces differ.
        WeightsError: If the weights are missing or one key does not fit.

    Example:
        >>> towers = load_two_towers("open_clip:ViT-B-32", weights="random")
        >>> towers.image.embed(torch.rand(1, 3, 224, 224)).shape, towers.text.encode(["a cat"]).shape
        (torch.Size([1, 512]), torch.Size([1, 512]))
    """
    text = load_text_tower(reference, weights=weights, trust_torchscript=trust_torchscript, seed=seed)
    image = load_backbone(reference, weights=weights, img_size=img_size, trust_torchscript=trust_torchscript, seed=seed)
    width = image.embed(torch.full((1, 3, image.img_size, image.img_size), 0.5)).shape[-1]
    if width != text.embed_dim:
        raise ModelReferenceError(
            f"'{reference}' embeds images in {width} channels and sentences in {text.embed_dim}: they share no space."
            " Give a directory whose image tower has its projection."
        )
    return TwoTowers(image, text)


def load_text_tower(
    reference: str, *, weights: str | Path = "pretrained", trust_torchscript: bool = False, seed: int = 0
) -> TextTower:
    """The text tower of a model on the CPU, in eval mode; its image tower is neither built nor kept.

    Args:
        reference: `open_clip:NAME?pretrained=TAG`, a directory of open_clip, `hf:DIR` or `hf:OWNER/REPOSITORY`, as for
            the image tower.
        weights: `pretrained`, `random`, or a file with the state dict of the whole model (of open_clip, or of the text
            tower alone).
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
    if parsed.kind == "open_clip":
        return load_open_clip_text(parsed, weights=weights, trust_torchscript=trust_torchscript, seed=seed)
    if parsed.kind == "hf" or (parsed.kind == "directory" and is_transformers_folder(parsed.name)):
        return load_transformers_text(parsed, weights=weights, seed=seed)
    raise ModelReferenceError(
        f"'{reference}' has no text tower that attar reads.{meant_here(parsed.name)}"
        " Give open_clip:NAME, a directory of open_clip, or hf:DIR of a clip or siglip."
    )


def has_text_tower(reference: str) -> bool:
    """Whether the model has a text tower that attar reads; of a repository on the hub the description is fetched.

    Raises:
        ModelReferenceError: If the reference names no model.
        WeightsError: If the description does not arrive.
    """
    parsed = parse_reference(reference)
    if parsed.kind == "hf" or (parsed.kind == "directory" and is_transformers_folder(parsed.name)):
        return read_kind(folder_of(parsed, "random")) in WHOLE_MODELS
    return parsed.kind == "open_clip"
