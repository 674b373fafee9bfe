"""What open_clip knows of a model by its name or folder: description, weights, and the activation they trained with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from attar.errors import ModelReferenceError, did_you_mean
from attar.models.files import StateDict, fetching, read_checkpoint
from attar.models.official import is_openai
from attar.models.references import OPEN_CLIP_CONFIG, Reference
from attar.utils.io import read_json

_WEIGHTS = (  # as open_clip's own factory prefers them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)


def open_clip_library() -> Any:
    """The module `open_clip`, imported only when a reference asks for it.

    Raises:
        ModelReferenceError: If it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports timm by names of the past
            import open_clip
    except ImportError:
        raise ModelReferenceError(
            "open_clip: references need open_clip, which is not installed."
            ' Try, in the clone of attar: pip install ".[vl]".'
        ) from None
    return open_clip


def meant_here(name: str) -> str:
    """What to say of a name without a prefix that is one of open_clip's; nothing of any other, or without open_clip."""
    try:
        is_known = name in open_clip_library().list_models()
    except ModelReferenceError:
        return ""
    return f" Did you mean 'open_clip:{name}?pretrained=TAG'?" if is_known else ""


def folder_in(reference: Reference) -> Path | None:
    """The folder that a reference names, if it holds open_clip's description of a model."""
    folder = Path(reference.name).expanduser()
    return folder if (folder / OPEN_CLIP_CONFIG).is_file() else None


def described_in(folder: Path, part: str) -> dict[str, Any]:
    """`model_cfg` or `preprocess_cfg` of a folder.

    Raises:
        ModelReferenceError: If there is none.
    """
    try:
        found = read_json(folder / OPEN_CLIP_CONFIG)[part]
        if part != "model_cfg" or all(found[key] for key in ("embed_dim", "vision_cfg", "text_cfg")):
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise ModelReferenceError(
        f"{folder / OPEN_CLIP_CONFIG} is not open_clip's description of a model (model_cfg with embed_dim, vision_cfg"
        " and text_cfg, and preprocess_cfg). Copy the folder anew."
    )


def model_config(library: Any, reference: Reference) -> dict[str, Any]:
    """open_clip's description of the model.

    Raises:
        ModelReferenceError: If open_clip knows no such model, or the reference has other arguments than `pretrained`.
    """
    unknown = [key for key in reference.arguments if key != "pretrained"]
    if unknown:
        raise ModelReferenceError(f"model 'open_clip:{reference}': '{unknown[0]}' is no argument. Only pretrained is.")
    if (folder := folder_in(reference)) is not None:
        return described_in(folder, "model_cfg")
    config = library.get_model_config(reference.name) if ":" not in reference.name else None
    if config is None:
        guess = did_you_mean(reference.name, library.list_models())
        raise ModelReferenceError(
            f"no model '{reference.name}' in open_clip {library.__version__}.{guess}"
            " List them with open_clip.list_models()."
        )
    return dict(config)


def published_tag(library: Any, reference: Reference, weights: str | Path) -> str | None:
    """The published weights to load, None for a file, a folder's own or random weights.

    Raises:
        ModelReferenceError: If they are not named, or there are none of that name.
    """
    asked = reference.arguments.get("pretrained")
    if weights != "pretrained":
        if asked is not None:
            raise ModelReferenceError(
                f"model 'open_clip:{reference}' names published weights, and weights={weights} names others. Keep one."
            )
        return None
    if folder_in(reference) is not None:
        if asked is not None:
            raise ModelReferenceError(
                f"model 'open_clip:{reference}' is a folder with weights of its own. Drop {asked}."
            )
        return None
    tags = library.list_pretrained_tags_by_model(reference.name)
    tag = asked if asked is not None else tags[0] if len(tags) == 1 else None
    if tag not in tags:
        known = f"Known: {', '.join(tags)}." if tags else "open_clip publishes none: give a file, or random."
        what = f"has no published weights '{tag}'" if tag else "must say which published weights: ?pretrained=TAG"
        raise ModelReferenceError(f"model 'open_clip:{reference}' {what}. {known}")
    return str(tag)


def open_weights(
    library: Any, reference: Reference, tag: str | None, weights: str | Path, *, trust_torchscript: bool, has_gelu: bool
) -> tuple[Path, StateDict, str]:
    """(file, tensors, a note on what of the file they are) of published weights, of a folder's or of a given file.

    Args:
        library: The module `open_clip`.
        reference: Of the model.
        tag: Of the published weights; None for a file.
        weights: The file, or `pretrained`.
        trust_torchscript: Read a TorchScript archive, which can run code.
        has_gelu: The tower computes the activation that open_clip's description says, GELU or QuickGELU.

    Raises:
        ModelReferenceError: If the weights were trained with the other of the two.
        WeightsError: If the file does not arrive or cannot be read.
    """
    if has_gelu and tag is not None:
        is_quick = bool(library.get_pretrained_cfg(reference.name, tag).get("quick_gelu", False))
        _check_activation(library, reference, is_quick=is_quick)
    folder = folder_in(reference)
    if tag is not None:
        file = _download(library, reference.name, tag)
    elif weights == "pretrained" and folder is not None:
        file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), folder / _WEIGHTS[0])
    else:
        file = Path(weights).expanduser()
    state, part = read_checkpoint(file, trust_torchscript=trust_torchscript)
    if has_gelu and is_openai(state, "visual."):
        _check_activation(library, reference, is_quick=True)
    return file, state, part


def _check_activation(library: Any, reference: Reference, *, is_quick: bool) -> None:
    """Refuse weights of another activation where open_clip has the model with theirs; the numbers would be wrong."""
    asks_quick = bool(model_config(library, reference).get("quick_gelu", False))
    if is_quick == asks_quick:
        return
    names = ("QuickGELU", "GELU") if is_quick else ("GELU", "QuickGELU")
    if (folder := folder_in(reference)) is not None:
        raise ModelReferenceError(
            f"these weights were trained with {names[0]}, and {folder / OPEN_CLIP_CONFIG} describes a model with"
            f" {names[1]}. Take the model that they belong to."
        )
    other = f"{reference.name}-quickgelu" if is_quick else reference.name.removesuffix("-quickgelu")
    if other in library.list_models():
        raise ModelReferenceError(
            f"these weights were trained with {names[0]}, and {reference.name} computes {names[1]}."
            f" Try open_clip:{other}."
        )


def _download(library: Any, name: str, tag: str) -> Path:
    file_instead = "a weight file: --weights or --teacher-weights FILE (weights=FILE in Python)"
    with fetching(f"weights '{tag}' of open_clip:{name}", instead=file_instead):
        return Path(library.download_pretrained(library.get_pretrained_cfg(name, tag)))
