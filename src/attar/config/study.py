"""Settings of `attar transfer --study`: those of `attar transfer`, and what is set against what."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from attar.config.base import Config
from attar.config.flags import merge
from attar.config.transfer import Pretraining, TransferConfig
from attar.errors import ConfigError, did_you_mean

Fetching = Literal["query_balanced", "class_balanced", "best_match", "random", "random_by_place"]
"""How a row's set is chosen from the pool, as `attar curate` does; `random_by_place` is its `--balance-sources`."""

_SWEPT = ("seed", "labels_per_class", "pretrain", "scratch")
_PRETRAINED = "pretrained"


def _one_is_a_list_of_one(value: Any) -> Any:
    return value if isinstance(value, tuple | list) else (value,)


_OneOrMore = BeforeValidator(_one_is_a_list_of_one)


@dataclass(frozen=True)
class Row:
    """One way of making the student.

    Attributes:
        name: As it was given.
        pretrain: What comes before finetuning.
        fetching: How its transfer set is chosen from the pool; None where it is given.
        place: Images to transfer on where they are given; None for all of the pool.
        student_weights: What the student begins with, where the row says it: `pretrained` or a weight file.
    """

    name: str
    pretrain: Pretraining
    fetching: Fetching | None = None
    place: str | None = None
    student_weights: str | None = None

    @classmethod
    def parse(cls, name: str) -> Row:
        """A row by its name.

        It is `scratch`, `pretrained` or `pretrained:FILE` (given weights, finetuned), `PRETRAIN` on the whole pool,
        `PRETRAIN:FETCHING` or `PRETRAIN:PLACE`.

        Raises:
            ConfigError: If that is no way of making a student.

        Example:
            >>> Row.parse("task:query_balanced").fetching, Row.parse("cosine:~/photos").place
            ('query_balanced', '~/photos')
            >>> Row.parse("pretrained:small.safetensors").student_weights
            'small.safetensors'
        """
        if name == "scratch":
            return cls(name, "none")
        pretrain, colon, rest = name.partition(":")
        known = [word for word in get_args(Pretraining) if word != "none"]
        if pretrain not in (*known, _PRETRAINED) or (colon and not rest):
            raise ConfigError(
                f"'{name}' is no row.{did_you_mean(pretrain, ['scratch', _PRETRAINED, *known])} A row is scratch,"
                f" pretrained or pretrained:FILE (given weights), or one of {', '.join(known)}, alone (on the whole"
                f" pool) or with what it transfers on after a colon: {', '.join(get_args(Fetching))}, or a place of"
                " images."
            )
        if pretrain == _PRETRAINED:
            return cls(name, "none", student_weights=rest or _PRETRAINED)
        if rest in get_args(Fetching):
            return cls(name, pretrain, fetching=rest)  # type: ignore[arg-type]
        return cls(name, pretrain, place=rest or None)  # type: ignore[arg-type]


class SetsConfig(Config):
    """The transfer sets that rows fetch from the pool, as settings of `attar curate` of the same names."""

    budget: int = Field(5000, ge=1, description="images in a set, the labelled ones among them")
    leak_threshold: float | None = Field(
        0.94, gt=0, le=1, description="similarity to a val or test image from which one is a copy; none: no guard"
    )
    duplicate_threshold: float | None = Field(
        0.94, gt=0, le=1, description="similarity from which two images are one; none: keep both"
    )


class StudyConfig(TransferConfig):
    """Ways of making a small model against each other, over numbers of labels and seeds."""

    rows: Annotated[tuple[str, ...], _OneOrMore] = Field(
        ("scratch", "contrastive:query_balanced", "task:random", "task:query_balanced"),
        min_length=1,
        description="scratch, pretrained, pretrained:FILE, or PRETRAIN, PRETRAIN:FETCHING (such as task:query_balanced)"
        " or PRETRAIN:PLACE",
    )
    labels: Annotated[tuple[int, ...], _OneOrMore] = Field(
        min_length=1, description="labelled images of each class, one number or several"
    )
    seeds: Annotated[tuple[int, ...], _OneOrMore] = Field(
        (0, 1, 2), min_length=1, description="of the draw of labels, the sets and the training; one run each"
    )
    pretrain: Pretraining = Field("task", description="set by the study: --rows says what")
    labels_per_class: int | None = Field(None, ge=1, description="set by the study: --labels says how many")
    scratch: bool = Field(True, description="set by the study: the row scratch is such a student")
    seed: int = Field(0, ge=0, description="set by the study: --seeds says which")
    sets: SetsConfig = SetsConfig()
    row_settings: dict[str, dict[str, Any]] = Field(
        {}, description="settings of attar transfer that a row has for its own, by its name (in --config)"
    )

    @property
    def table(self) -> tuple[Row, ...]:
        """The rows."""
        return tuple(Row.parse(name) for name in self.rows)

    @property
    def unused(self) -> tuple[str, ...]:
        """Settings that are given though none of the rows has a use for them."""
        given = [name for name in _OF_ROWS if functools.reduce(getattr, name.split("."), self) != _default(name)]
        return tuple(name for name in given if not any(map(_OF_ROWS[name], self.table)))

    def cell(self, row: Row, labels: int, seed: int, *, pool: str | None, out: str) -> TransferConfig:
        """Settings of one run; those of a kind of transfer that the row is not are left out.

        Args:
            row: How the student is made.
            labels: Labelled images of each class.
            seed: Of everything that is drawn.
            pool: What it transfers on; None for all of the pool.
            out: Run directory.
        """
        own = set(StudyConfig.model_fields) - set(TransferConfig.model_fields)
        settings = self.model_dump(exclude=own) | {"scratch": False, "pretrain": row.pretrain, "out": out}
        settings |= {"seed": seed, "labels_per_class": labels} | ({"pool": pool} if pool else {})
        if row.student_weights:
            settings["student_weights"] = row.student_weights
        for name, is_used in _OF_SOME.items():
            if not is_used(row.pretrain) and any(is_used(other.pretrain) for other in self.table):
                settings = merge(settings, _default_of(name))
        return TransferConfig.build(merge(settings, self.row_settings.get(row.name, {})))

    @model_validator(mode="after")
    def _what_is_needed_is_there(self) -> Self:
        """Asked of each row's settings, as the two below: what one row needs another may have no use for."""
        return self

    @model_validator(mode="after")
    def _settings_fit_the_task(self) -> Self:
        return self

    @model_validator(mode="after")
    def _settings_are_of_use(self) -> Self:
        return self

    @model_validator(mode="after")
    def _sweeps_alone(self) -> Self:
        given = [name for name in _SWEPT if getattr(self, name) != TransferConfig.model_fields[name].default]
        if given:
            raise ConfigError(
                f"setting '{given[0]}' is given, and a study sets it itself: --labels, --seeds and --rows say what."
                " Leave it out."
            )
        if self.transfer.max_steps is None:
            raise ConfigError(
                "transfer.max_steps is missing: rows are compared at equal steps, and epochs of sets of several sizes"
                " are not equal. Give --transfer.max-steps."
            )
        return self

    @model_validator(mode="after")
    def _rows_are_known(self) -> Self:
        for name in self.rows:
            Row.parse(name)
        for what in ("rows", "labels", "seeds"):
            values = getattr(self, what)
            if len(set(values)) < len(values):
                raise ConfigError(f"{what} are {', '.join(map(str, values))}: one stands there twice. Give each once.")
        strange = [name for name in self.row_settings if name not in self.rows]
        if strange:
            raise ConfigError(
                f"row_settings are given for '{strange[0]}', which is none of the rows: {', '.join(self.rows)}."
            )
        wrong = {key for settings in self.row_settings.values() for key in settings} & {*_SWEPT, "out", "pool"}
        if wrong:
            raise ConfigError(f"row_settings hold '{min(wrong)}', which the study sets itself. Leave it out.")
        return self

    @model_validator(mode="after")
    def _every_row_can_run(self) -> Self:
        if self.task != "classification":
            raise ConfigError(
                f"task is {self.task}, and a study draws so many labelled images of each class, which images with many"
                " classes do not allow. Give a command attar transfer --labels-share for each run."
            )
        for row in self.table:
            try:
                self.cell(row, self.labels[0], self.seeds[0], pool=row.place, out=self.out)
            except ConfigError as error:
                raise ConfigError(f"row {row.name}: {error}") from None
        return self


_OF_SOME: dict[str, Callable[[Pretraining], bool]] = {
    "transfer.cached_views": lambda pretrain: pretrain == "task",
    "transfer.proteus": lambda pretrain: pretrain == "proteus",
    "transfer.optim.accumulate": lambda pretrain: pretrain != "contrastive",
}
"""Settings that `TransferConfig` refuses beside another pretrain, and whether one has a use for them."""


_OF_ROWS: dict[str, Callable[[Row], bool]] = {
    "adapt": lambda row: row.pretrain == "task",
    "transfer.temperature": lambda row: row.pretrain == "task",
    "transfer.feature_weight": lambda row: row.pretrain == "task",
    "transfer.contrastive_temperature": lambda row: row.pretrain == "contrastive",
    "sets": lambda row: row.fetching is not None,
}
"""Settings that are read for some rows alone, and whether a row is one."""


def _default(name: str) -> Any:
    """What a setting is where it is not given, by its dotted name."""
    first, *path = name.split(".")
    return functools.reduce(getattr, path, StudyConfig.model_fields[first].default)


def _default_of(name: str) -> dict[str, Any]:
    """A setting by its dotted name as nested settings, with the value that leaves it out.

    Example:
        >>> _default_of("transfer.optim.accumulate")
        {'transfer': {'optim': {'accumulate': 1}}}
    """
    default = _default(name)
    value = default.model_dump() if isinstance(default, Config) else default
    return functools.reduce(lambda inner, key: {key: inner}, reversed(name.split(".")), value)
