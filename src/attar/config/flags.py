"""Flags into settings: `--optim.lr 1e-3` becomes `{"optim": {"lr": "1e-3"}}`, and the config model does the rest.

tyro prints the help of a config model; reading the flags is ours, because then a wrong flag and a wrong value get the
same one-sentence errors as YAML and Python do.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from attar.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class _Flag:
    path: tuple[str, ...]
    is_switch: bool
    num_values: int
    takes_more: bool  # `num_values` is the least


def parse_flags(model: type[BaseModel], words: Sequence[str]) -> dict[str, Any]:
    """Nested settings from command-line words; values stay text for the model to read (`none` is None).

    Of a flag that is given twice the last one holds, also where it takes several values.

    Raises:
        ConfigError: If a flag is unknown or has no value, or a word belongs to no flag.

    Example:
        >>> from attar.config import DistillConfig
        >>> parse_flags(DistillConfig, ["--seed", "3", "--optim.lr=1e-3", "--tensorboard"])
        {'seed': '3', 'optim': {'lr': '1e-3'}, 'tensorboard': True}
    """
    known = _flags_of(model)
    settings: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"'{word}' belongs to no flag. Settings are given as --name value.")
        name, equals, attached = word.partition("=")
        name = name.replace("_", "-")
        negated = re.sub(r"(--|\.)no-", r"\1", name, count=1)  # --no-a.b, and --a.no-b as tyro's help has it
        if name not in known and negated in known and known[negated].is_switch:
            _put(settings, known[negated].path, False)
            continue
        if name not in known:
            own = getattr(model, "elsewhere", {}).get(name.removeprefix("--"))
            nested = [f"--{own}"] if own else [flag for flag in known if flag.endswith(f".{name.removeprefix('--')}")]
            meant = "' or '".join(nested[:4])
            guess = f" Did you mean '{meant}'?" if nested else did_you_mean(name, known)
            raise ConfigError(f"unknown flag '{name}'.{guess} All flags: --help.")
        flag = known[name]
        if flag.is_switch and not equals:
            given = rest.pop(0) if rest and rest[0].lower() in ("true", "false") else True
            _put(settings, flag.path, given)
            continue
        values = [attached] if equals else []
        while (len(values) < flag.num_values or flag.takes_more) and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if len(values) < flag.num_values:
            raise ConfigError(f"{name} needs {flag.num_values} value{'s' * (flag.num_values > 1)}, got {len(values)}.")
        plain = [None if value.lower() == "none" else value for value in values]
        _put(settings, flag.path, plain[0] if len(plain) == 1 else plain)
    return settings


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with those of `over` taking precedence."""
    merged = dict(base)
    for key, value in over.items():
        current = merged.get(key)
        merged[key] = merge(current, value) if isinstance(current, dict) and isinstance(value, dict) else value
    return merged


def _flags_of(model: type[BaseModel], parents: tuple[str, ...] = ()) -> dict[str, _Flag]:
    found: dict[str, _Flag] = {}
    for name, field in model.model_fields.items():
        path = (*parents, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _flags_of(kind, path)
            continue
        kind = next((part for part in typing.get_args(kind) if typing.get_origin(part) is tuple), kind)  # … or None
        values = typing.get_args(kind) if typing.get_origin(kind) is tuple else (kind,)
        takes_more = values[-1] is Ellipsis
        flag = _Flag(path, kind is bool, 1 if takes_more else len(values), takes_more)
        found["--" + ".".join(path).replace("_", "-")] = flag
    return found


def _put(settings: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        settings = settings.setdefault(name, {})
    settings[path[-1]] = value
