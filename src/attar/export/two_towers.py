"""A small model of images and sentences as one directory of open_clip, no attar needed."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from attar.errors import ConfigError
from attar.export.student import card_end, note_licence
from attar.models import Backbone, Licence, TextTower
from attar.models.as_open_clip import InOpenClip, image_as_open_clip, text_as_open_clip
from attar.models.files import StateDict
from attar.models.open_clip_files import open_clip_library
from attar.models.references import OPEN_CLIP_CONFIG
from attar.utils.io import new_folder, read_json, write_json
from attar.utils.plain import in_cell
from attar.utils.seeding import seeded_torch, torch_generator

_TOKENISER = "tokeniser-in-this-folder"  # open_clip looks in the folder itself, whatever the name is
_SENTENCES = ["a photo of a cat.", "Two dogs and a bird by the SEA, at 9 o'clock!", "a " * 200]
_CLOSE = 1e-4  # of the embeddings' own size, which they differ by as sums in another order do


def write_two_towers(
    folder: Path, image: Backbone, text: TextTower, *, card: str, scale: float, licence: Licence | None = None
) -> None:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and `README.md`, and a tokeniser's files if need be.

    It loads with `open_clip.create_model_from_pretrained("local-dir:FOLDER")` and
    `open_clip.get_tokenizer("local-dir:FOLDER")`, without a network, unless the tokeniser is one of transformers: then
    that must be installed. What stood in the folder is replaced in one rename, after open_clip's own model with these
    tensors has given the towers' embeddings.

    Args:
        folder: Where the model goes.
        image: Of `with_projection`, or an image tower of open_clip.
        text: Of open_clip, of a small student, or of a clip or siglip of transformers.
        card: Text of the model card.
        scale: What cosines are multiplied by.
        licence: Of the weights that it was made from, which its description keeps for those made from it.

    Raises:
        ConfigError: If open_clip cannot build one of the towers, or not both with one activation.
    """
    towers = _in_open_clip(image, text)
    with new_folder(folder) as temporary:
        _describe(temporary, towers, image, text)
        state = _state(towers, scale)
        _check_same(temporary, state, image, text)
        if licence is not None:
            note_licence(temporary / OPEN_CLIP_CONFIG, licence)
        save_file(state, temporary / "open_clip_model.safetensors", metadata={"format": "pt"})
        (temporary / "README.md").write_text(card, encoding="utf-8")


def check_ships(image: Backbone, text: TextTower) -> None:
    """Refuse towers that `write_two_towers` could not write; to be asked before they are trained.

    Raises:
        ConfigError: As `write_two_towers`.
    """
    image = _stirred(image)
    towers = _in_open_clip(image, text)
    with tempfile.TemporaryDirectory() as folder:
        _describe(Path(folder), towers, image, text)
        _check_same(Path(folder), _state(towers, 1.0), image, text)


def _stirred(image: Backbone) -> Backbone:
    """A copy whose norms, biases and layer scales are not a fresh model's, of which wrong ones would not show."""
    image, generator = copy.deepcopy(image), torch_generator(0, "stirred")
    with torch.no_grad():
        for parameter in image.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.2)
    return image


def _in_open_clip(image: Backbone, text: TextTower) -> dict[str, InOpenClip]:
    """Both towers as open_clip has them, by their names there.

    Raises:
        ConfigError: If it has no words for one of them, or not for both together.
    """
    with torch.no_grad():
        width = image.embed(torch.full((1, 3, image.img_size, image.img_size), 0.5)).shape[-1]
    if width != text.embed_dim:
        raise ConfigError(
            f"the image tower embeds in {width} channels and the text tower in {text.embed_dim}: they share no space."
            " Project the image tower into the text tower's width (with_projection)."
        )
    towers = {"visual": image_as_open_clip(image, width), "text": text_as_open_clip(text)}
    if towers["visual"].quick_gelu not in (None, towers["text"].quick_gelu):
        has, other = ("GELU", "QuickGELU") if towers["text"].quick_gelu else ("QuickGELU", "GELU")
        added = "quick_gelu" if other == "QuickGELU" else "gelu"
        raise ConfigError(
            f"the image tower {image.source.name} computes {has} and the text tower {text.source.name} {other}: a model"
            f" of open_clip has one activation for both. Add act_layer={added} to the student's reference, or take a"
            " timm model without arguments at its own img_size."
        )
    return towers


def _describe(folder: Path, towers: Mapping[str, InOpenClip], image: Backbone, text: TextTower) -> None:
    """Write the configuration, and the tokeniser where it is not CLIP's own, which open_clip brings along."""
    text_config = {key: value for key, value in towers["text"].config.items() if key != "hf_tokenizer_name"}
    if hasattr(text.tokenise, "save_pretrained"):
        text_config["hf_tokenizer_name"] = _TOKENISER
        text.tokenise.save_pretrained(folder)
    model = {
        "embed_dim": text.embed_dim,
        "vision_cfg": towers["visual"].config,
        "text_cfg": text_config,
        "quick_gelu": bool(towers["text"].quick_gelu),
        "custom_text": True,  # the text tower's tensors stand under a name of their own
    }
    preprocess = {
        "size": image.img_size,
        "mode": "RGB",
        "mean": image.preprocess.mean,
        "std": image.preprocess.std,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": model, "preprocess_cfg": preprocess})


def _state(towers: Mapping[str, InOpenClip], scale: float) -> StateDict:
    state = {f"{name}.{key}": tensor for name, tower in towers.items() for key, tensor in tower.state.items()}
    state["logit_scale"] = torch.tensor(math.log(scale))
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in state.items()}


@torch.no_grad()
def _check_same(folder: Path, state: StateDict, image: Backbone, text: TextTower) -> None:
    """Build what is described as open_clip does, and compare tokens and embeddings, on the CPU.

    Raises:
        ConfigError: If they differ.
    """
    library: Any = open_clip_library()
    tokens: Tensor = library.get_tokenizer(f"local-dir:{folder}")(_SENTENCES)
    if not torch.equal(tokens, text.tokenise(_SENTENCES)):
        raise ConfigError(
            f"open_clip reads sentences otherwise than {text.source.name} does with the same tokeniser's files, so that"
            " the student would give other embeddings there. Take another teacher."
        )
    config = read_json(folder / OPEN_CLIP_CONFIG)["model_cfg"]
    config.pop("custom_text")  # which names the class
    with seeded_torch(0, "initialisation"):
        model = library.CustomTextCLIP(**config).eval()
    model.load_state_dict(state, strict=True)
    image, encoder = copy.deepcopy(image).cpu(), copy.deepcopy(text.model).cpu().eval()
    views = torch.rand((2, 3, image.img_size, image.img_size), generator=torch_generator(0, "views"))
    _check_close(model.encode_image((views - image.mean) / image.std), image.embed(views), image.source.name)
    _check_close(model.encode_text(tokens), encoder(tokens), text.source.name)


def _check_close(given: Tensor, wanted: Tensor, name: str) -> None:
    apart = ((given - wanted).abs().max() / wanted.abs().max()).item()
    if not apart <= _CLOSE:
        raise ConfigError(
            f"open_clip's model with the tensors of {name} embeds otherwise, by {apart:.1g} of the largest value"
            f" (at most {_CLOSE:.0g}): it has a part that open_clip has no words for. Take a plain ViT or a timm model"
            " without arguments as student, or another teacher."
        )


_CARD = """It is an ordinary model of open_clip:

```python
import open_clip
model, preprocess = open_clip.create_model_from_pretrained("local-dir:path/to/this/folder")
model.eval()
tokenise = open_clip.get_tokenizer("local-dir:path/to/this/folder")
seen = model.encode_image(preprocess(image).unsqueeze(0), normalize=True)
read = model.encode_text(tokenise(["a photo of a cat.", "a photo of a dog."]), normalize=True)
shares = (model.logit_scale.exp() * seen @ read.T).softmax(-1)
```"""


def two_towers_card(
    title: str,
    facts: Mapping[str, str],
    table: str,
    costs: str,
    *,
    licence: Licence | None = None,
    limits: Sequence[str] = (),
) -> str:
    """Markdown of a model card: how to load, where it comes from, how it was measured, what its towers cost.

    Args:
        title: Of the card.
        facts: Where it comes from, a row each.
        table: Markdown of what was measured.
        costs: Markdown of `costs_table`; nothing where they were not measured yet.
        licence: Of the weights that it was made from; None where there were none but random ones.
        limits: What the figures do not say, a sentence each.
    """
    measured = f"## Costs\n\n{costs}\n\n" if costs else ""
    rows = "\n".join(f"| {in_cell(name)} | {in_cell(value)} |" for name, value in facts.items())
    return (
        f"# {in_cell(title)}\n\n"
        f"A model of images and sentences trained with attar. {_CARD}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"## Measured\n\n{table}\n\n"
        f"{measured}"
        f"{card_end(licence, limits, of='the images and sentences used')}"
    )
