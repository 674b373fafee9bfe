"""Protocols on frozen features: what each needs of a backbone, and the score it makes of that.

What they need is told first, so that one pass over the images serves all protocols that see the same view; then each
judges what lies in the feature store, without the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.errors import ConfigError
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.judged import Judged
from attar.evaluation.knn import knn_votes
from attar.evaluation.logistic_probe import HONEST, PAPER, probe_logistic
from attar.evaluation.metrics import METRICS
from attar.evaluation.outputs import Output
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features
from attar.evaluation.task_data import open_learned
from attar.types import Statistics

CLIP: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Of OpenAI's CLIP: Proteus' fine-grained benchmarks normalise every model by them (spec evaluation, trap 3)."""


@dataclass(frozen=True)
class Need:
    """Features that a protocol needs.

    Attributes:
        images: Of which images.
        view: How the model sees them.
        outputs: What to keep.
        statistics: Normalise by these in place of the model's own.
        name: What progress and messages call the images.
    """

    images: Labelled
    view: EvaluationView
    outputs: tuple[Output, ...]
    statistics: Statistics | None = None
    name: str = "images"


@dataclass(frozen=True)
class Score:
    """What a protocol found.

    Attributes:
        metric: Name of the figure.
        value: In [0, 1].
        ci95: Its 95 % interval, by bootstrap over the images reported on.
        n: How many these are.
        protocol: Settings that shape it, and what was chosen how.
        details: Figures beside it.
    """

    metric: str
    value: float
    ci95: tuple[float, float]
    n: int
    protocol: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)


PARTS = ("train", "val", "test")


class TaskData(Protocol):
    """Images of a task, in whatever parts its protocol takes them.

    Attributes:
        parts: All of them, by name.
        origin: Who made the parts and what else shapes a figure, for the record.
        metric: Name of what is reported.
    """

    @property
    def parts(self) -> Mapping[str, Labelled]: ...

    @property
    def origin(self) -> str: ...

    @property
    def metric(self) -> str: ...


D = TypeVar("D", bound=TaskData)


def class_tokens(splits: Splits, view: EvaluationView, statistics: Statistics | None = None) -> dict[str, Need]:
    """What protocols on class tokens need: those of all parts, in one view."""
    return {part: Need(getattr(splits, part), view, ("cls",), statistics, f"{part} images") for part in PARTS}


def one_class_each(splits: Splits, place: str) -> Splits:
    """The splits, of which each image has one class.

    Raises:
        ConfigError: If images have several.
    """
    if splits.train.labels.ndim == 2:
        raise ConfigError(f"images of {place} have several classes each, which logistic and zero_shot tasks can judge.")
    return splits


def chosen_on(mode: str) -> dict[str, str]:
    """On which images settings were chosen, for the record."""
    return {"chosen_on": "val" if mode == "honest" else "the images reported on"}


def scored(
    data: TaskData,
    scores: Tensor,
    test: Features,
    protocol: dict[str, Any],
    details: dict[str, Any] | None = None,
    *,
    seed: int,
) -> Score:
    """The score of (n, K) scores by the data's metric; top-1, top-5 and mean per class stand beside it."""
    metric = METRICS[data.metric]
    beside = {}
    if test.labels.ndim == 1:
        names = ("top1", "top5", "mean_per_class") if scores.shape[1] > 5 else ("top1", "mean_per_class")
        beside = {name: METRICS[name](scores, test.labels) for name in names}
    interval = bootstrap_interval(metric, scores, test.labels, seed=seed)
    value = metric(scores, test.labels)
    return Score(metric.name, value, interval, len(test), protocol, beside | (details or {}))


class FeatureProtocol(Protocol[D]):
    """A protocol that asks a backbone for stored features, and perhaps its text tower."""

    def open(self, place: str) -> D:
        """The images of a data set of the table or of a user's place.

        Raises:
            ConfigError: If it is on a data set of the table, and there is no `data_root`.
            MissingDatasetError: If the data set is not below `data_root`.
            DataError: If the images cannot be used.
        """
        ...

    def needs(self, data: D, img_size: int) -> dict[str, Need]:
        """What to embed, under names of its own."""
        ...

    def judge(self, features: Mapping[str, Features], data: D, model: Judged) -> Score:
        """The score, from features under the same names."""
        ...


class Knn:
    """k-NN, with the number of neighbours chosen on `val`; in paper mode the best of them on what is reported.

    DINOv2 reports several k; that the largest is meant where one figure is given is an inference.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.settings, self.mode = config, config.knn, config.mode

    def open(self, place: str) -> Splits:
        """Images to learn from, to choose by and to report."""
        return one_class_each(open_learned(place, self.config), place)

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of all parts."""
        return class_tokens(splits, EvaluationView(img_size, self.settings.crop_pct))

    def judge(self, features: Mapping[str, Features], splits: Splits, model: Judged) -> Score:
        """Share of `test` whose class wins the vote of `train` and `val`."""
        train, val, test = (features[part] for part in PARTS)
        metric, classes = METRICS[splits.metric], splits.num_classes
        both = torch.cat([train["cls"], val["cls"]]), torch.cat([train.labels, val.labels])
        reported = {
            k: votes.clone() for k, votes in knn_votes(*both, test["cls"], ks=self.settings.k, num_classes=classes)
        }
        by_k = {k: metric(votes, test.labels) for k, votes in reported.items()}
        chosen_by = by_k
        if self.mode == "honest":
            votes_of_val = knn_votes(train["cls"], train.labels, val["cls"], ks=self.settings.k, num_classes=classes)
            chosen_by = {k: metric(votes, val.labels) for k, votes in votes_of_val}
        k = max(chosen_by, key=chosen_by.__getitem__)  # the first of equals, the smallest
        settings = {"k": k, "tried": list(by_k), "crop_pct": self.settings.crop_pct} | chosen_on(self.mode)
        details = {"by_k": {str(k): value for k, value in by_k.items()}}
        return scored(splits, reported[k], test, settings, details, seed=self.config.seed)


class Logistic:
    """Logistic regression on class tokens for 45 penalties (Proteus, after SynCLR), the best chosen on `val`.

    In paper mode every model normalises by CLIP's statistics, of equally good penalties the weakest is taken, and the
    sweep never stops early.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.settings, self.mode = config, config.logistic, config.mode
        self.protocol = replace(PAPER if config.mode == "paper" else HONEST, standardise=self.settings.standardise)

    def open(self, place: str) -> Splits:
        """Images to learn from, to choose by and to report."""
        return open_learned(place, self.config)

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of all parts."""
        statistics = CLIP if self.mode == "paper" else None
        return class_tokens(splits, EvaluationView(img_size, self.settings.crop_pct), statistics)

    def judge(self, features: Mapping[str, Features], splits: Splits, model: Judged) -> Score:
        """The data set's metric on `test`, of a fit on `train` and `val`."""
        train, val, test = (features[part] for part in PARTS)
        found = probe_logistic(
            (train["cls"], train.labels),
            (val["cls"], val.labels),
            test["cls"],
            metric=METRICS[splits.metric],
            protocol=self.protocol,
        )
        settings = {
            "lambda": found.penalty,
            "converged": found.converged,
            "standardise": self.settings.standardise,
            "ties": self.protocol.ties,
            "crop_pct": self.settings.crop_pct,
            "normalised_by": "CLIP's statistics" if self.mode == "paper" else "the model's own statistics",
            "chosen_on": "val",
        }
        by_penalty = {f"{penalty:.6g}": score for penalty, score in found.val_scores.items()}
        return scored(splits, found.test_scores, test, settings, {"val_by_lambda": by_penalty}, seed=self.config.seed)
