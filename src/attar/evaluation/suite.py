"""Tasks by name: a protocol on a data set of the table or on a user's own images; and the papers' suites of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from attar.config.evaluate import EvaluateConfig
from attar.errors import ConfigError, did_you_mean
from attar.evaluation.datasets import DATASETS, open_dataset, open_training
from attar.evaluation.datasets import SUITES as _DATASETS_OF
from attar.evaluation.protocols import FeatureProtocol, Knn, Linear, Logistic
from attar.evaluation.splits import Splits, open_splits


@dataclass(frozen=True)
class Task:
    """A protocol on images.

    Attributes:
        protocol: A name in `PROTOCOLS`.
        place: A data set of the table, or a reference to labelled images of one's own.
    """

    protocol: str
    place: str

    def __str__(self) -> str:
        return f"{self.protocol}:{self.place}"

    @property
    def is_benchmark(self) -> bool:
        """Whether the place is a data set of the table."""
        return self.place in DATASETS


PROTOCOLS: Mapping[str, Callable[[EvaluateConfig], FeatureProtocol]] = MappingProxyType(
    {"knn": Knn, "linear": Linear, "logistic": Logistic}
)
"""Protocols by the name that tasks call them."""

_PLAYGROUND = "playground:1?n=1400&variety=0"

SUITES: Mapping[str, tuple[Task, ...]] = MappingProxyType(
    {
        "proteus12": tuple(Task("logistic", name) for name in _DATASETS_OF["proteus12"]),
        "playground": tuple(Task(protocol, _PLAYGROUND) for protocol in PROTOCOLS),
    }
)
"""Tasks of each suite, in the order of the papers' tables."""


def parse_tasks(words: Sequence[str]) -> list[Task]:
    """Tasks in the order given, suites taken apart, each once.

    Raises:
        ConfigError: If a word names no task and no suite.
    """
    tasks = [task for word in words for task in _parse(word)]
    return list(dict.fromkeys(tasks))


def _parse(word: str) -> tuple[Task, ...]:
    protocol, colon, place = word.partition(":")
    if not colon and word in SUITES:
        return SUITES[word]
    if colon and protocol in PROTOCOLS and place:
        return (Task(protocol, place),)
    raise ConfigError(
        f"'{word}' is no task.{did_you_mean(protocol, [*PROTOCOLS, *SUITES])} A task is PROTOCOL:DATASET or"
        f" PROTOCOL:DIR, with {', '.join(PROTOCOLS)}; or a suite: {', '.join(SUITES)}."
    )


def protocol_of(task: Task, config: EvaluateConfig) -> FeatureProtocol:
    """The task's protocol with its settings."""
    return PROTOCOLS[task.protocol](config)


def means() -> dict[str, list[str]]:
    """Names of the tasks of suites whose papers report their mean."""
    return {name: [str(task) for task in SUITES[name]] for name in ("proteus12",)}


def open_task(task: Task, config: EvaluateConfig) -> Splits:
    """The images of a task.

    Raises:
        ConfigError: If it is on a data set of the table, and there is no `data_root`.
        MissingDatasetError: If the data set is not below `data_root`.
        DataError: If the images cannot be used.
    """
    if not task.is_benchmark:
        return open_splits(task.place, seed=config.seed, reindex=config.reindex)
    if config.data_root is None:
        raise ConfigError(
            f"{task} is on a data set of the table, and data_root is not set. Try --data-root DIR; for a folder of"
            f" that name {task.protocol}:./{task.place}."
        )
    train, val = open_training(task.place, config.data_root)
    test = open_dataset(task.place, config.data_root, "test")
    return Splits(train, val, test, "as the papers split it", metric=test.dataset.metric)
