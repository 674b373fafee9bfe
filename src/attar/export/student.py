"""A finished student as an ordinary model: a directory of timm or transformers with a model card, no attar needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from attar.models import Backbone, Licence
from attar.models.licences import ORIGIN_LICENCE
from attar.models.transformers import TransformersTower
from attar.utils.io import new_folder, read_json, write_json
from attar.utils.plain import in_cell

_NOT_OURS = ("license", "origin_url", "paper_name", "paper_ids", "notes", "tag", "hf_hub_id", "hf_hub_filename", "url")

Library = Literal["timm", "transformers", "attar"]


def library_of(student: Backbone) -> Library:
    """The library with which a student loads once it is written."""
    if isinstance(student.model, TransformersTower):
        return "transformers"
    return "timm" if isinstance(getattr(student.model, "pretrained_cfg", None), dict) else "attar"


def write_student(
    folder: Path, student: Backbone, *, card: str, licence: Licence | None = None, crop_pct: float = 1.0
) -> None:
    """Write `config.json`, `model.safetensors` and `README.md`; what stood in the folder is replaced in one rename.

    A timm model loads with `timm.create_model("local-dir:FOLDER", pretrained=True)`, one of transformers with
    `AutoModel.from_pretrained(FOLDER)`. A module of the user's own is written as its state dict beside the reference
    of its factory and the statistics it learned with.

    Args:
        folder: Where the student goes.
        student: The backbone to ship.
        card: Text of the model card.
        licence: Of the weights that it was made from, which its description keeps for those made from it.
        crop_pct: Share of the resized image that the centre crop kept where it was judged; timm's transforms read it.
    """
    with new_folder(folder) as temporary:
        write_backbone(temporary, student, licence=licence, crop_pct=crop_pct)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def write_backbone(
    folder: Path,
    student: Backbone,
    *,
    model: nn.Module | None = None,
    label_names: Sequence[str] = (),
    licence: Licence | None = None,
    crop_pct: float = 1.0,
) -> None:
    """Write `config.json` and `model.safetensors` into a folder that is there.

    Args:
        folder: Where.
        student: The backbone.
        model: What to write in place of a timm backbone's own model: the same one with a classifier.
        label_names: Of its classes.
        licence: Of the weights that it was made from.
        crop_pct: Share of the resized image that the centre crop keeps; only timm's description has a place for it.
    """
    if isinstance(student.model, TransformersTower):
        student.model.save(folder, student.preprocess, img_size=student.img_size)
    elif library_of(student) == "timm":
        _write_timm(folder, student, model or student.model, label_names, crop_pct)
    else:
        save_file({k: v.contiguous() for k, v in student.model.state_dict().items()}, folder / "model.safetensors")
        statistics = {"mean": student.preprocess.mean, "std": student.preprocess.std}
        write_json(folder / "config.json", {"attar": {"reference": student.source.name, **statistics}})
    if licence is not None:
        note_licence(folder / "config.json", licence)


def note_licence(file: Path, licence: Licence) -> None:
    """Note in a model's description what the weights that it was made from are bound by; libraries pass over it."""
    write_json(file, read_json(file) | {ORIGIN_LICENCE: licence.name})


def _write_timm(folder: Path, student: Backbone, model: Any, label_names: Sequence[str], crop_pct: float) -> None:
    size = (3, student.img_size, student.img_size)
    preprocessing = {
        "mean": student.preprocess.mean,
        "std": student.preprocess.std,
        "input_size": size,
        "crop_pct": crop_pct,
    }
    about: dict[str, Any] = {"pretrained_cfg": preprocessing}
    if label_names:
        about["label_names"] = list(label_names)
    pooling = getattr(model, "global_pool", None)  # a word where a model can pool in several ways, else its module
    if isinstance(pooling, str) and pooling != getattr(student.model, "global_pool", None):
        about["model_args"] = {"global_pool": pooling, "fc_norm": not isinstance(model.fc_norm, nn.Identity)}
    architecture_config = model.pretrained_cfg
    try:
        # what describes the published weights of the architecture does not describe these
        model.pretrained_cfg = {k: v for k, v in architecture_config.items() if k not in _NOT_OURS}
        save_for_hf(model, str(folder), model_config=about, safe_serialization=True)
    finally:
        model.pretrained_cfg = architecture_config
    config = read_json(folder / "config.json")
    # transformers passes model_args and num_classes both, and fails on the repetition
    config.get("model_args", {}).pop("num_classes", None)
    write_json(folder / "config.json", config)


_TIMM_CARD = """It is an ordinary timm model:

```python
import timm
model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()
tokens = model.forward_features(images)  # images normalised with mean and std of config.json
```"""
_TRANSFORMERS_CARD = """It is an ordinary transformers model:

```python
from transformers import AutoImageProcessor, AutoModel
processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
model = AutoModel.from_pretrained("path/to/this/folder").eval()
tokens = model(**processor(images, return_tensors="pt")).last_hidden_state
```"""
_MODULE_CARD = """It is a module of your own: `config.json` names its factory, `model.safetensors` is its state dict.

```python
import attar
model = attar.load_backbone("module:…", weights="path/to/this/folder/model.safetensors")  # the reference in config.json
```"""


LOADING: Mapping[Library, str] = {"timm": _TIMM_CARD, "transformers": _TRANSFORMERS_CARD, "attar": _MODULE_CARD}
"""How a student is loaded, in Markdown."""


def model_card(
    title: str,
    facts: Mapping[str, str],
    table: str,
    *,
    library: Library = "timm",
    licence: Licence | None = None,
    limits: Sequence[str] = (),
) -> str:
    """Markdown of a model card: how to load, where it comes from, how it was measured, what binds it.

    Args:
        title: Of the card.
        facts: Where it comes from, a row each.
        table: Markdown of what was measured.
        library: With which it loads.
        licence: Of the weights that it was made from; None where there were none but random ones.
        limits: What the figures do not say, a sentence each.
    """
    rows = "\n".join(f"| {in_cell(name)} | {in_cell(str(value))} |" for name, value in facts.items())
    return (
        f"# {in_cell(title)}\n\n"
        f"A vision backbone trained with attar. {LOADING[library]}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"## Measured\n\n{table}\n\n"
        f"{card_end(licence, limits, of='the images used')}"
    )


def card_end(licence: Licence | None, limits: Sequence[str], *, of: str) -> str:
    """Markdown of what a card ends with: limits and licence.

    Args:
        licence: Of the weights that it was made from, the teacher's and those that it started from; None where there
            were none but random ones.
        limits: A sentence each.
        of: Whose terms else bind the student.
    """
    bounds = "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits) + "\n\n" if limits else ""
    origin, terms = "", of
    if licence is not None:
        origin, terms = f"{licence.in_sentences('weights that these were made from')} ", f"that licence and {of}"
    return (
        f"{bounds}## Licence\n\n{origin}The licence of these weights is for their maker to choose, within the terms"
        f" of {terms}. attar claims no right in them.\n"
    )
