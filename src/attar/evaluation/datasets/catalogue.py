"""The table of data sets, and the suites that the papers report."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attar.errors import ConfigError, did_you_mean
from attar.evaluation.datasets import apple, dense, elevater, fine_grained, imagenet
from attar.evaluation.datasets.dataset import Dataset

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {row.name: row for part in (imagenet, fine_grained, elevater, dense, apple) for row in part.ROWS}
)
"""Every row by name."""

_PROTEUS12 = tuple(row.name for row in fine_grained.ROWS)
_SHARED_WITH_ELEVATER = tuple(name for name in _PROTEUS12 if name not in ("caltech101", "sun397", "cub200"))

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "proteus12": _PROTEUS12,
        "proteus19": (
            *("imagenet", *_PROTEUS12, "ade20k", "nyuv2"),
            *("imagenet-sketch", "imagenet-a", "imagenet-r", "imagenet-c"),
        ),
        "elevater20": (*_SHARED_WITH_ELEVATER, *(row.name for row in elevater.ROWS)),
        "robustness5": ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet"),
        "apple5": tuple(row.name for row in apple.ROWS),
        "dense": tuple(row.name for row in dense.ROWS),
    }
)
"""Names of each suite's data sets, in the order of the papers' tables. The composition of the 19 is inferred."""


def find_dataset(name: str) -> Dataset:
    """The row of that name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in DATASETS:
        known = ", ".join(DATASETS)
        raise ConfigError(f"there is no data set '{name}'.{did_you_mean(name, DATASETS)} Known: {known}.")
    return DATASETS[name]


def datasets_of(suite: str) -> tuple[Dataset, ...]:
    """The rows of a suite, in the order of its table.

    Raises:
        ConfigError: If there is no such suite.
    """
    if suite not in SUITES:
        raise ConfigError(f"there is no suite '{suite}'.{did_you_mean(suite, SUITES)} Known: {', '.join(SUITES)}.")
    return tuple(DATASETS[name] for name in SUITES[suite])
