"""Images to be told apart by the names of their classes: what to call each, and in which sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.evaluation.datasets import find_dataset, prompt_names, prompt_templates
from attar.evaluation.task_data import is_benchmark, open_tests
from attar.evaluation.zero_shot import check_prompts
from attar.utils.io import sha256_text

_PLAIN = ("a photo of a {}.",)
_ELEVATERS = {"map11": "map11_softmax", "roc_auc": "roc_auc_softmax"}


@dataclass(frozen=True)
class Prompts:
    """Names of classes and sentences with a place for them.

    Attributes:
        names: K of them, in the order of labels.
        templates: The sentences.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]

    def __str__(self) -> str:
        digest = sha256_text("\n".join([*self.names, "", *self.templates]))[:8]
        return f"{len(self.names)} names in {len(self.templates)} templates ({digest})"


@dataclass(frozen=True)
class Prompted:
    """Images to be reported on, and what their classes are called.

    Attributes:
        place: Where they are from.
        parts: By name: `test`, or the splits of ImageNet-C.
        prompts: Names and templates.
        metric: Name of what is reported.
    """

    place: str
    parts: Mapping[str, Labelled]
    prompts: Prompts
    metric: str

    @property
    def origin(self) -> str:
        """For the record."""
        return f"test images alone; {self.prompts}"


def open_prompted(place: str, config: EvaluateConfig) -> Prompted:
    """Test images with their names and templates.

    Raises:
        ConfigError: If a template has no place for the name; otherwise as `open_learned`.
    """
    parts = open_tests(place, config)
    prompts = prompts_of(place, next(iter(parts.values())), config)
    return Prompted(place, parts, prompts, find_dataset(place).metric if is_benchmark(place) else "top1")


def prompts_of(place: str, images: Labelled, config: EvaluateConfig) -> Prompts:
    """Names and templates of the table; for other images the names of their classes in "a photo of a {}.".

    Raises:
        ConfigError: If a template has no place for the name.
        DataError: If there is no such file of templates, or the table does not know a class.
    """
    names = tuple(name.replace("_", " ") for name in images.class_names)
    if is_benchmark(place):
        names = prompt_names(find_dataset(place), images.class_names)
    found = Prompts(names, _templates(place, config.zero_shot.templates))
    check_prompts(found.names, found.templates)
    return found


def _templates(place: str, given: str | None) -> tuple[str, ...]:
    if given is None:
        table = find_dataset(place).templates if is_benchmark(place) else None
        return _PLAIN if table is None else prompt_templates(table)
    file = Path(given).expanduser()
    if not file.is_file():
        return prompt_templates(given)
    return tuple(line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))


def metric_in(mode: str, metric: str) -> str:
    """The metric, in paper mode as ELEVATER takes it: of shares in place of scores (spec evaluation, trap 6)."""
    return _ELEVATERS.get(metric, metric) if mode == "paper" else metric
