"""Model references: the strings by which users name a model (`timm:`, `open_clip:`, `hf:`, `module:`, a directory)."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from attar.errors import ModelReferenceError, did_you_mean, meant_beside

Kind = Literal["timm", "directory", "module", "open_clip", "hf"]
_PREFIXES: tuple[Kind, ...] = ("timm", "open_clip", "hf", "module")
PLAYGROUND = "playground"
"""The teacher of shapes that the package ships; `./playground` is a folder of that name."""
OPEN_CLIP_CONFIG = "open_clip_config.json"
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")


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
    """Parse what a user calls a model.

    `NAME` or `timm:NAME?key=value`, `open_clip:NAME?pretrained=TAG`, `hf:DIR` or `hf:OWNER/REPOSITORY[@REVISION]`,
    `module:package.mod:factory?key=value`, a directory with `config.json` or `open_clip_config.json`, or `playground`,
    the small teacher of shapes that comes with attar.

    Raises:
        ModelReferenceError: If the text is empty, has an unknown prefix or names a directory without a model.

    Example:
        >>> parse_reference("vit_tiny_patch16_224?patch_size=14").arguments
        {'patch_size': 14}
    """
    if not text.strip():
        raise ModelReferenceError("the model reference is empty. Try vit_small_patch14_dinov2, or a folder.")
    name = text.partition("?")[0]
    if name == PLAYGROUND:
        return Reference("directory", str(files("attar.data") / "assets/playground_teacher"), _split_arguments(text)[1])
    for folder in (text, name):  # a folder's own name may hold a question mark
        if (path := Path(folder).expanduser()).is_dir():
            return _parse_folder(path, text[len(folder) :])
    path = Path(text).expanduser()
    prefix, _, rest = text.partition(":")
    if ":" in name and len(prefix) > 1:  # one letter is a drive
        return _parse_prefixed(prefix, rest, text)
    if path.is_absolute() or name.startswith("~") or "/" in name or path.is_file() or path.suffix in _WEIGHT_FILES:
        is_like_a_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) and path.suffix not in _WEIGHT_FILES
        hint = meant_beside(Path(name).expanduser())
        hint += f" If it is a repository of the model hub, write hf:{text}." if is_like_a_repository else ""
        raise ModelReferenceError(
            f"model reference '{text}' is no folder.{hint} A weight file goes with its architecture:"
            " NAME with --weights or --teacher-weights FILE (or weights=FILE)."
        )
    return Reference("timm", *_split_arguments(text))


def _parse_folder(path: Path, query: str) -> Reference:
    arguments = _split_arguments(query)[1]
    if (path / "config.json").is_file():
        return Reference("directory", str(path), arguments)
    if not (path / OPEN_CLIP_CONFIG).is_file():
        raise ModelReferenceError(
            f"folder {path} holds no config.json and no {OPEN_CLIP_CONFIG}, so it is no model that attar, timm,"
            " transformers or open_clip wrote."
            " Of a run, attar evaluate takes the directory, all else its student/ folder; for a weight file, name its"
            " architecture and give the weights."
            " For the timm model of that name, write timm:NAME."
        )
    return Reference("open_clip", str(path), arguments)


def _parse_prefixed(prefix: str, rest: str, text: str) -> Reference:
    kind = next((known for known in _PREFIXES if known == prefix), None)
    if prefix == "local-dir":
        raise ModelReferenceError(f"model reference '{text}' is as timm has it; attar takes the folder alone: {rest}")
    if kind == "open_clip" and rest.startswith("local-dir:"):
        folder = rest.removeprefix("local-dir:")
        raise ModelReferenceError(
            f"model reference '{text}' is as open_clip has it; attar takes the folder alone: {folder}"
        )
    if kind is None:
        raise ModelReferenceError(
            f"model reference '{text}' has an unknown prefix '{prefix}'.{did_you_mean(prefix, _PREFIXES)}"
            " Use a timm name, open_clip:NAME, hf:DIR, a timm directory, or module:package.mod:factory."
        )
    if kind == "hf":
        return Reference("hf", rest)  # a folder's name may hold a question mark
    name, arguments = _split_arguments(rest)
    if kind == "module" and name.count(":") != 1:
        raise ModelReferenceError(f"model reference '{text}' must look like module:package.mod:factory.")
    return Reference(kind, name, arguments)


def _split_arguments(text: str) -> tuple[str, dict[str, Any]]:
    name, _, query = text.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ModelReferenceError(f"model reference '{text}' gives '{twice}' twice. Keep one.")
    return name, {key: _literal(value) for key, value in pairs}


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
