"""Robustness: classifiers of ImageNet's 1000 classes on its shifts, and corruption error (spec evaluation §1.7)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor

from attar.errors import DataError, ShapeError, did_you_mean
from attar.evaluation.datasets.imagenet import EXTRA_CORRUPTIONS

SEVERITIES = 5


def select_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits of some of a classifier's classes, so that the prediction is one of these (ImageNet-A and -R).

    An argmax over all classes that is then looked up among the 200 would call many more images wrong.

    Args:
        logits: (n, 1000).
        classes: (m,) int64, the classifier's class of each of the data set's, in the order of its labels.

    Returns:
        (n, m).

    Raises:
        ShapeError: If a class is none of the classifier's, or named twice.
    """
    _check(logits, classes.tolist())
    return logits[:, classes]


def merge_classes(logits: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The highest logit of the classes that make up each class of the data (ObjectNet; wise-ft).

    Args:
        logits: (n, 1000).
        groups: For each class of the data, the classifier's classes that it stands for; 113 of them in ObjectNet.

    Returns:
        (n, len(groups)).

    Raises:
        ShapeError: If a group is empty, or a class is none of the classifier's or in two groups.
    """
    if not all(groups):
        empty = next(number for number, group in enumerate(groups) if not group)
        raise ShapeError(f"class {empty} stands for none of the classifier's classes. Leave its images out.")
    _check(logits, [index for group in groups for index in group])
    return torch.stack([logits[:, list(group)].amax(1) for group in groups], dim=1)


@cache
def alexnet_errors() -> dict[str, tuple[float, ...]]:
    """AlexNet's error on each of the 15 corruptions, at severities 1 to 5; they normalise corruption error."""
    text = (files("attar.evaluation") / "assets" / "imagenet_c_alexnet.json").read_text(encoding="utf-8")
    return {name: tuple(errors) for name, errors in json.loads(text)["errors"].items()}


def corruption_errors(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Corruption error of each of the 15 corruptions: the sum of errors over severities, in units of AlexNet's sum.

    The four extra corruptions are left out (Hendrycks and Dietterich 2019, §4; DINOv3's table averages them too).

    Args:
        errors: For each corruption the top-1 errors in [0, 1] at severities 1 to 5.

    Raises:
        DataError: If a corruption or severity is missing, unknown, or an error is no share.
    """
    reference = alexnet_errors()
    unknown = next((name for name in errors if name not in reference and name not in EXTRA_CORRUPTIONS), None)
    if unknown is not None:
        raise DataError(f"'{unknown}' is no corruption of ImageNet-C.{did_you_mean(unknown, reference)}")
    missing = [name for name in reference if name not in errors]
    if missing:
        raise DataError(
            f"{', '.join(missing)} of ImageNet-C's 15 corruptions are missing. A mean of the rest would look like mCE"
            " and be none: judge on all, or report the corruptions one by one."
        )
    return {name: _corruption_error(name, errors[name], of) for name, of in reference.items()}


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """mCE: the mean of `corruption_errors` over the 15 corruptions, 1 for AlexNet; tables show it times 100."""
    found = corruption_errors(errors)
    return sum(found.values()) / len(found)


def _corruption_error(name: str, errors: Sequence[float], reference: Sequence[float]) -> float:
    if len(errors) != SEVERITIES or not all(0 <= error <= 1 for error in errors):
        raise DataError(
            f"errors of {name} are {list(errors)}; they must be five shares in [0, 1], of severities 1 to 5."
        )
    return sum(errors) / sum(reference)


def _check(logits: Tensor, classes: list[int]) -> None:
    if logits.ndim != 2 or not all(0 <= index < logits.shape[1] for index in classes):
        raise ShapeError(
            f"logits are {tuple(logits.shape)} but class {max(classes)} is asked for; they must be (n, K)."
        )
    twice = next((index for index in classes if classes.count(index) > 1), None)
    if twice is not None:
        raise ShapeError(f"class {twice} of the classifier stands for two classes of the data. Mend the mapping.")
