"""Class names and templates of zero-shot classifiers: text files beside this one, each with its source."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attar.errors import DataError
from attar.evaluation.datasets.dataset import Dataset

_HERE = Path(__file__).parent
_RULES: Mapping[str, Callable[[str], str]] = {
    "verbatim": str,
    "words": lambda key: key.replace("_", " "),
    "lower": str.lower,
    "places": lambda key: re.sub(r"^[a-z]/", "", key).replace("_", " ").replace("/", " "),  # a/apse/indoor
    "birds": lambda key: re.sub(r"^\d+\.", "", key).replace("_", " "),  # 001.Black_footed_Albatross
}


def prompt_names(dataset: Dataset, class_names: Sequence[str]) -> tuple[str, ...]:
    """What to call each class in a prompt, for classes as a reader names them (`Labelled.class_names`).

    Names that are prompt names already, as those of WebDataset mirrors, stay.

    Raises:
        DataError: If a class is not among those of the file of names.

    Example:
        >>> from attar.evaluation.datasets import find_dataset
        >>> prompt_names(find_dataset("eurosat"), ["SeaLake", "River"])
        ('lake or sea', 'river')
    """
    if dataset.names in _RULES:
        return tuple(map(_RULES[dataset.names], class_names))
    entries = [line.split("\t") for line in _lines("names", dataset.names)]
    by_key = {key: name for key, name in entries if key}
    known = {name for _, name in entries}
    if not by_key and len(class_names) == len(entries) and not known.issuperset(class_names):
        return tuple(name for _, name in entries)  # a file without keys stands in the order of labels
    strange = next((name for name in class_names if name not in by_key and name not in known), None)
    if strange is not None:
        raise DataError(
            f"{dataset.name} has a class '{strange}', which names/{dataset.names}.txt does not know"
            f" ({len(entries)} classes, such as '{entries[0][0] or entries[0][1]}'). Name the classes as its makers do."
        )
    return tuple(by_key.get(name, name) for name in class_names)


def listed_names(dataset: Dataset) -> tuple[str, ...]:
    """What prompts call the classes of a data set, for those whose names lie in a file here: no data is needed.

    Raises:
        DataError: If they lie with its data.
    """
    if dataset.names in _RULES:
        raise DataError(
            f"the class names of {dataset.name} lie with its data, not with attar. Give a text file, a name a line."
        )
    return tuple(line.split("\t")[-1] for line in _lines("names", dataset.names))


def prompt_templates(name: str) -> tuple[str, ...]:
    """Templates with one {} each: `imagenet80`, `imagenet7`, or what a row of the table names.

    Raises:
        DataError: If there is no such file.
    """
    return tuple(_lines("templates", name))


def _lines(kind: str, name: str) -> list[str]:
    path = _HERE / kind / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt")))
        raise DataError(f"there are no {kind} '{name}'. Known: {known}.")
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
