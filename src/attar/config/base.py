"""The ground every verb's settings stand on: frozen, strict, and free of torch so that help is instant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from attar.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as _ModelMeta
else:
    _ModelMeta = type(BaseModel)


def _one_is_a_list_of_one(places: Any) -> Any:
    return (places,) if isinstance(places, str) else places


def _one_is_written_plainly(places: tuple[str, ...]) -> str | list[str]:
    return places[0] if len(places) == 1 else list(places)  # as runs of 0.1 wrote it, which resume


Places = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_one_is_a_list_of_one),
    PlainSerializer(_one_is_written_plainly),
]
"""References to images, one or several; a single one may be given, and is written, as plain text."""


class _InWords(_ModelMeta):
    """Makes `SomeConfig(...)` complain as `SomeConfig.build(...)` does; nested settings are none of its business."""

    def __call__(self, *values: Any, **settings: Any) -> Any:
        try:
            return super().__call__(*values, **settings)
        except ValidationError as error:
            raise ConfigError(explain(error, self)) from None  # type: ignore[arg-type]


class Config(BaseModel, metaclass=_InWords):
    """Frozen settings. Unknown keys are errors with a suggestion; bounds are checked where a value enters."""

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """What other verbs call settings that these have by another name."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def build(cls, settings: Mapping[str, Any]) -> Self:
        """Validate a nested mapping (YAML, keyword arguments).

        Raises:
            ConfigError: With one line for each wrong setting: its name, its value, the rule, a suggestion.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    def given(self) -> dict[str, Any]:
        """What was set, as nested settings: of each section its own; all of one whose class has other defaults."""
        found = {}
        for name in self.model_fields_set:
            value = getattr(self, name)
            is_plain = isinstance(value, Config) and type(value) is type(type(self).model_fields[name].default)
            found[name] = value.given() if is_plain else self.model_dump(include={name})[name]
        return found

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again; what nobody set stays for a recipe to say.

        A section takes a mapping of its changed fields, or a model that stands for all of them.

        Raises:
            ConfigError: If a changed field is unknown or out of bounds.
        """
        settings = self.given()
        for name, value in changes.items():
            current = settings.get(name)
            if isinstance(value, Mapping) and isinstance(current, dict):
                settings[name] = current | dict(value)
            else:
                settings[name] = value.model_dump() if isinstance(value, BaseModel) else value
        return type(self).build(settings)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A pydantic error as sentences of value, rule and remedy."""
    lines = []
    wrong = {item["loc"] for item in error.errors()}
    for item in error.errors():
        if any(loc[: len(item["loc"])] == item["loc"] != loc for loc in wrong):
            continue  # it follows from what is wrong within
        path = [str(part) for part in item["loc"]]
        key = ".".join(path)
        if item["type"] in ("extra_forbidden", "invalid_key"):
            known = _fields_at(model, path[:-1])
            own = getattr(model, "elsewhere", {}).get(key)
            hint = (
                f" Did you mean '{own}'?"
                if own
                else did_you_mean(path[-1], known) or f" Known here: {', '.join(known)}."
            )
            lines.append(f"unknown setting '{key}'.{hint}")
        elif item["type"] == "missing":
            flag = "--" + key.replace("_", "-")
            lines.append(f"setting '{key}' is missing: give {flag}, or '{key}' in --config.")
        elif item["type"] == "value_error":
            lines.append(str(item["ctx"]["error"]))
        elif item["type"] == "model_type":
            known = _fields_at(model, path)
            lines.append(f"'{key}' is {item['input']!r}: it holds settings of its own: {', '.join(known)}.")
        else:
            rule = item["msg"][:1].lower() + item["msg"][1:]
            known = re.findall(r"'([^']*)'", rule) if item["type"] == "literal_error" else []
            guess = did_you_mean(str(item["input"]), known)
            lines.append(f"setting '{key}' is {item['input']!r}: {rule}.{guess}")
    return "\n".join(lines)


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the fields of the (nested) model at `path`."""
    for name in path:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
