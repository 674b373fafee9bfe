"""YAML in and out: plain values only, every key once, and `1e-3` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from attar.config.base import Config
from attar.errors import ConfigError

_LARGEST = 1 << 20  # bytes: settings take some thousand, and YAML is slow to read


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases and repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise ConfigError(f"{self.name}: aliases (*{event.anchor}) are not allowed. Write the value out.")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise ConfigError(f"{self.name}: {key} stands where the name of a setting should. Write 'name: value'.")
            if key in seen:
                raise ConfigError(f"{self.name}: '{key}' is given twice. Keep one.")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a string; numbers without a dot are numbers too
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_settings(path: Path) -> dict[str, Any]:
    """Settings from a YAML file.

    Raises:
        ConfigError: If the file is missing, no YAML, or no mapping at the top.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST:
            raise ConfigError(
                f"config file {path} has {size:,} bytes, the limit is {_LARGEST:,}."
                " Name folders or patterns, not single files."
            )
        with path.open(encoding="utf-8") as file:
            settings = yaml.load(file, _StrictLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}. Give --config a YAML file.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date or number that cannot be
        raise ConfigError(f"config file {path} is no valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ConfigError(f"config file {path} is no valid YAML: brackets are nested too deep.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {path} holds a {type(settings).__name__}; it must hold 'key: value' lines.")
    return settings


def to_yaml(config: Config, *, comment: str = "") -> str:
    """The resolved settings as YAML that `--config` reads back, under a comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    settings = config.model_dump(mode="json")
    text: str = yaml.safe_dump(settings, sort_keys=False, width=100, allow_unicode=True)
    if not all(line.isprintable() for line in text.split("\n")):  # a name that would act on a terminal
        text = yaml.safe_dump(settings, sort_keys=False, width=100)
    return head + text
