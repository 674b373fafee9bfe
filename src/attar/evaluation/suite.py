"""Tasks by name: a protocol on a data set of the table or on a user's own images; and the papers' suites of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from attar.config.evaluate import EvaluateConfig
from attar.errors import ConfigError, did_you_mean
from attar.evaluation.datasets import SUITES as _DATASETS_OF
from attar.evaluation.datasets.imagenet import ROWS as _IMAGENETS
from attar.evaluation.dense import (
    DeepLabProbe,
    DenseProtocol,
    DepthProbe,
    DptProbe,
    SegmentationProbe,
    UPerNetProbe,
)
from attar.evaluation.dense.task import DenseTask
from attar.evaluation.elevater_protocol import Elevater
from attar.evaluation.few_shot_protocol import FewShotProbe
from attar.evaluation.linear_protocol import Linear
from attar.evaluation.protocols import FeatureProtocol, Knn, Logistic
from attar.evaluation.retrieval_protocol import Retrieval
from attar.evaluation.shifts_protocol import LinearOnShift
from attar.evaluation.zero_shot_protocol import ZeroShot


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


DENSE: Mapping[str, Callable[[EvaluateConfig], DenseProtocol]] = MappingProxyType(
    {
        "segmentation": SegmentationProbe,
        "upernet": UPerNetProbe,
        "deeplab": DeepLabProbe,
        "depth": DepthProbe,
        "dpt": DptProbe,
    }
)
"""Protocols on images with annotations."""

PROTOCOLS: Mapping[str, Callable[[EvaluateConfig], FeatureProtocol[Any]]] = MappingProxyType(
    {
        "knn": Knn,
        "linear": Linear,
        "logistic": Logistic,
        "few_shot": FewShotProbe,
        "zero_shot": ZeroShot,
        "elevater": Elevater,
        "retrieval": Retrieval,
    }
)
"""Protocols by the name that tasks call them."""

READS_TEXT: Mapping[str, bool] = MappingProxyType({"zero_shot": True, "retrieval": True, "elevater": False})
"""Protocols that look at the model's text tower, and whether they need one."""

SHIFTS = tuple(row.name for row in _IMAGENETS if row.name != "imagenet")
"""Test sets that an ImageNet head is judged on."""

_PLAYGROUND, _SCENES = "playground:1?n=1400&variety=0", "playground:1?n=200&variety=0"


def _tasks(protocol: str, places: Sequence[str]) -> tuple[Task, ...]:
    return tuple(Task(protocol, place) for place in places)


_ELEVATER20 = _DATASETS_OF["elevater20"]
_OF_PROTEUS = {"imagenet": "linear", **dict.fromkeys(_DATASETS_OF["proteus12"], "logistic")}
_OF_PROTEUS |= dict.fromkeys(SHIFTS, "linear")
_OF_PROTEUS |= {"ade20k": "upernet", "nyuv2": "dpt"}
_OF_APPLE = {
    "linear": ("places365_apple", "eurosat_apple", "ham10k_apple", "imagenet_apple"),
    "logistic": ("places365_apple", "eurosat_apple", "ham10k_apple"),
    "deeplab": ("ade20k_apple",),
}

SUITES: Mapping[str, tuple[Task, ...]] = MappingProxyType(
    {
        "proteus12": _tasks("logistic", _DATASETS_OF["proteus12"]),
        "proteus19": tuple(Task(_OF_PROTEUS[name], name) for name in _DATASETS_OF["proteus19"] if name in _OF_PROTEUS),
        "elevater20": _tasks("zero_shot", _ELEVATER20) + _tasks("elevater", _ELEVATER20),
        "robustness5": _tasks("zero_shot", _DATASETS_OF["robustness5"]),
        "apple5": tuple(task for protocol, places in _OF_APPLE.items() for task in _tasks(protocol, places)),
        "dense": (
            *(Task(name, "ade20k") for name in ("segmentation", "upernet")),
            *_tasks("segmentation", ("camvid",)),
            *tuple(Task(name, "nyuv2") for name in ("depth", "dpt")),
        ),
        "playground": tuple(Task(protocol, _PLAYGROUND) for protocol in ("knn", "linear", "logistic"))
        + tuple(Task(protocol, _SCENES) for protocol in ("segmentation", "depth")),
    }
)
"""Tasks of each suite, in the order of the papers' tables.

`apple5` probes frozen features; the paper fine-tunes a model on each task, so its figures are no match.
"""


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
    if colon and protocol in (*PROTOCOLS, *DENSE) and place:
        _check_no_task_in(word, place)
        return (Task(protocol, place),)
    if protocol in (*PROTOCOLS, *DENSE):
        raise ConfigError(f"'{word}' names no images. Try {protocol}:DIR, or {protocol}: and a data set of --list.")
    raise ConfigError(
        f"'{word}' is no task.{did_you_mean(protocol, [*PROTOCOLS, *DENSE, *SUITES])} A task is PROTOCOL:DATASET or"
        f" PROTOCOL:DIR, with {', '.join([*PROTOCOLS, *DENSE])}; or a suite: {', '.join(SUITES)}."
    )


def _check_no_task_in(word: str, place: str) -> None:
    """A misspelt task behind a comma would count as the end of the folder before it."""
    for misspelt in re.findall(r",([\w-]+):", place):
        meant = did_you_mean(misspelt, [*PROTOCOLS, *DENSE])
        if meant and not os.path.exists(os.path.expanduser(place)):  # of any text: no home and no length is an error
            raise ConfigError(f"'{misspelt}' in '{word}' is no protocol.{meant} See --list.")


def protocol_of(task: Task, config: EvaluateConfig) -> FeatureProtocol[Any]:
    """The task's protocol with its settings."""
    if task.protocol == "linear" and task.place in SHIFTS:
        return LinearOnShift(config)
    if task.protocol in DENSE:
        return DenseTask(config, DENSE[task.protocol](config))
    return PROTOCOLS[task.protocol](config)


def means() -> dict[str, list[str]]:
    """Names of the tasks of suites whose papers report their mean."""
    found = {
        "proteus12": SUITES["proteus12"],
        "elevater20": _tasks("zero_shot", _ELEVATER20),  # the same name as in the table of published figures
        "elevater20 probe": _tasks("elevater", _ELEVATER20),
        "robustness5": SUITES["robustness5"],
    }
    return {name: list(map(str, tasks)) for name, tasks in found.items()}
