"""The table of data sets, and the suites that the papers report."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attar.errors import ConfigError, did_you_mean
from attar.evaluation.datasets.apple import ROWS as APPLE
from attar.evaluation.datasets.dataset import Dataset
from attar.evaluation.datasets.dense import ROWS as DENSE
from attar.evaluation.datasets.elevater import ROWS as ELEVATER
from attar.evaluation.datasets.fine_grained import ROWS as FINE_GRAINED
from attar.evaluation.datasets.imagenet import ROWS as IMAGENET

DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {row.name: row for row in (*IMAGENET, *FINE_GRAINED, *ELEVATER, *DENSE, *APPLE)}
)
"""Every row by name."""

_PROTEUS12 = tuple(row.name for row in FINE_GRAINED)
_SHARED_WITH_ELEVATER = tuple(name for name in _PROTEUS12 if name not in ("caltech101", "sun397", "cub200"))

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "proteus12": _PROTEUS12,
        "proteus19": (
            *("imagenet", *_PROTEUS12, "ade20k", "nyuv2"),
            *("imagenet-sketch", "imagenet-a", "imagenet-r", "imagenet-c"),
        ),
        "elevater20": (*_SHARED_WITH_ELEVATER, *(row.name for row in ELEVATER)),
        "robustness5": ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet"),
        "apple5": tuple(row.name for row in APPLE),
        "dense": tuple(row.name for row in DENSE),
    }
)
"""Names of each suite's data sets. Which 19 Proteus counts is inferred from its tables."""


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
