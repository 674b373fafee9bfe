"""Model references: the strings by which users name a model (design: `timm:`, `module:`, a directory)."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from attar.errors import ModelReferenceError

Kind = Literal["timm", "directory", "module"]
_LATER = ("open_clip", "hf")  # named in the design, not readable by this version


@dataclass(frozen=True)
class Reference:
    """A parsed reference: where the model comes from, its name there, and arguments for its constructor."""

    kind: Kind
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        query = "&".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.name}?{query}" if query else self.name


def parse_reference(text: str) -> Reference:
    """Parse `NAME`, `timm:NAME?key=value`, `module:package.mod:factory` or a directory with `config.json`.

    Raises:
        ModelReferenceError: If the text is empty, has an unknown prefix or names a directory without a model.

    Example:
        >>> parse_reference("vit_tiny_patch16_224?patch_size=14").arguments
        {'patch_size': 14}
    """
    if not text.strip():
        raise ModelReferenceError("the model reference is empty. Try vit_small_patch14_dinov2, or a folder.")
    prefix, colon, rest = text.partition(":")
    if colon and prefix in _LATER:
        raise ModelReferenceError(
            f"model reference '{text}': {prefix} references cannot be read by this version."
            " Use a timm name, a timm directory, or module:package.mod:factory."
        )
    if colon and prefix == "module":
        name, arguments = _split_arguments(rest)
        if name.count(":") != 1:
            raise ModelReferenceError(f"model reference '{text}' must look like module:package.mod:factory.")
        return Reference("module", name, arguments)
    if colon and prefix == "timm":
        return Reference("timm", *_split_arguments(rest))
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelReferenceError(
                f"folder {path} holds no config.json, so it is no model that timm or attar wrote."
                " For a run, give its student/ folder; for a weight file, name its architecture and give the weights."
            )
        return Reference("directory", str(path))
    if path.is_absolute() or text.startswith(("./", "../", "~")) or path.suffix in (".pth", ".pt", ".safetensors"):
        raise ModelReferenceError(
            f"model reference '{text}' is no folder. A weight file goes with its architecture:"
            " NAME with --teacher-weights FILE (or weights=FILE)."
        )
    return Reference("timm", *_split_arguments(text))


def _split_arguments(text: str) -> tuple[str, dict[str, Any]]:
    name, _, query = text.partition("?")
    return name, {key: _literal(value) for key, value in parse_qsl(query, keep_blank_values=True)}


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
