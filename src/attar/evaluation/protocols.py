"""Protocols on frozen features: what each needs of a backbone, and the score it makes of that.

What they need is told first, so that one pass over the images serves all protocols that see the same view; then each
judges what lies in the feature store, without the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.knn import knn_scores, knn_votes
from attar.evaluation.linear_probe import linear_probe
from attar.evaluation.logistic_probe import HONEST, PAPER, probe_logistic
from attar.evaluation.metrics import METRICS
from attar.evaluation.outputs import Output
from attar.evaluation.probe_features import ProbeFeatures
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features
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

_PAPER_VIEWS = _PAPER_EPOCHS = 10
_LEAST_STEPS = 2000  # of a linear probe on few images, whose ten epochs would be over in no time


def class_tokens(splits: Splits, view: EvaluationView, statistics: Statistics | None = None) -> dict[str, Need]:
    """What protocols on class tokens need: those of all parts, in one view."""
    return {part: Need(getattr(splits, part), view, ("cls",), statistics, f"{part} images") for part in PARTS}


def chosen_on(mode: str) -> dict[str, str]:
    """On which images settings were chosen, for the record."""
    return {"chosen_on": "val" if mode == "honest" else "the images reported on"}


def scored(
    splits: Splits,
    scores: Tensor,
    test: Features,
    protocol: dict[str, Any],
    details: dict[str, Any] | None = None,
    *,
    seed: int,
) -> Score:
    """The score of (n, K) scores by the data set's metric; top-1 and mean per class stand beside it."""
    metric = METRICS[splits.metric]
    beside = {}
    if test.labels.ndim == 1:
        beside = {name: METRICS[name](scores, test.labels) for name in ("top1", "mean_per_class")}
    interval = bootstrap_interval(metric, scores, test.labels, seed=seed)
    value = metric(scores, test.labels)
    return Score(metric.name, value, interval, len(test), protocol, beside | (details or {}))


class FeatureProtocol(Protocol):
    """A protocol that asks a backbone for nothing but stored features."""

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """What to embed, under names of its own."""
        ...

    def judge(self, features: Mapping[str, Features], splits: Splits) -> Score:
        """The score, from features under the same names."""
        ...


class Knn:
    """k-NN, with the number of neighbours chosen on `val`; in paper mode the best of them on what is reported.

    DINOv2 reports several k; that the largest is meant where one figure is given is an inference.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.seed, self.mode = config.knn, config.seed, config.mode

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of all parts."""
        return class_tokens(splits, EvaluationView(img_size, self.config.crop_pct))

    def judge(self, features: Mapping[str, Features], splits: Splits) -> Score:
        """Share of `test` whose class wins the vote of `train` and `val`."""
        train, val, test = (features[part] for part in PARTS)
        bank, labels = torch.cat([train["cls"], val["cls"]]), torch.cat([train.labels, val.labels])
        reported = knn_scores((bank, labels), (test["cls"], test.labels), ks=self.config.k)
        chosen_by = reported
        if self.mode == "honest":
            chosen_by = knn_scores((train["cls"], train.labels), (val["cls"], val.labels), ks=self.config.k)
        k = max(chosen_by, key=lambda k: chosen_by[k].top1)  # the first of equals, the smallest
        votes = knn_votes(bank, labels, test["cls"], k=k, num_classes=splits.num_classes)
        by_k = {str(k): {"top1": found.top1, "top5": found.top5} for k, found in reported.items()}
        settings = {"k": k, "tried": sorted(by_k, key=int), "crop_pct": self.config.crop_pct}
        return scored(splits, votes, test, settings | chosen_on(self.mode), {"by_k": by_k}, seed=self.seed)


class Linear:
    """DINOv2's linear probe, 52 heads at once, the best chosen on `val`; in paper mode on what is reported.

    In paper mode heads learn from 10 random views for 10 epochs, as Proteus' do (spec evaluation §1.1).
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.seed, self.mode = config.linear, config.seed, config.mode
        is_paper = config.mode == "paper"
        self.views = (_PAPER_VIEWS if is_paper else 0) if self.config.views is None else self.config.views

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of the last blocks and the mean patch, of random views of `train` and centre views of all."""
        outputs: tuple[Output, ...] = ("last4", "mean_patch")
        centre = EvaluationView(img_size, self.config.crop_pct)
        train = splits.train if self.mode == "honest" else splits.official_train
        views = [EvaluationView(img_size, number=number, seed=self.seed) for number in range(self.views)] or [centre]
        found = {part: Need(getattr(splits, part), centre, outputs, name=f"{part} images") for part in ("val", "test")}
        return found | {
            f"train, view {number}": Need(train, view, outputs, name=f"training images, view {number + 1}")
            for number, view in enumerate(views)
        }

    def judge(self, features: Mapping[str, Features], splits: Splits) -> Score:
        """Share of `test` that the chosen head gets right."""
        views = [features[f"train, view {number}"] for number in range(max(1, self.views))]
        images = len(views[0])
        epochs = self.config.epochs or self._default_epochs(images)
        found = linear_probe(
            _probe_features(*views),
            test := _probe_features(features["test"]),
            mode=self.mode,
            val=_probe_features(features["val"]),
            batch_size=self.config.batch_size,
            epochs=epochs,
            seed=self.seed,
        )
        settings = {
            "head": found.chosen,
            "heads": len(found.scores),
            "views": self.views,
            "epochs": epochs,
            "steps": found.steps,
            "batch_size": found.batch_size,
            "crop_pct": self.config.crop_pct,
            **({"without": [str(layout) for layout in found.absent]} if found.absent else {}),
        }
        details = {"by_head": dict(found.scores)}
        return scored(
            splits, found.head.logits(test), features["test"], settings | chosen_on(self.mode), details, seed=self.seed
        )

    def _default_epochs(self, images: int) -> int:
        if self.mode == "paper":
            return _PAPER_EPOCHS
        steps = max(1, images // min(self.config.batch_size, images))
        return max(_PAPER_EPOCHS, -(-_LEAST_STEPS // steps))


def _probe_features(*views: Features) -> ProbeFeatures:
    cls, patch = ([view[name] for view in views] for name in ("last4", "mean_patch"))
    return ProbeFeatures(cls, patch, views[0].labels)


class Logistic:
    """Logistic regression on class tokens for 45 penalties (Proteus, after SynCLR), the best chosen on `val`.

    In paper mode every model normalises by CLIP's statistics, of equally good penalties the weakest is taken, and the
    sweep never stops early.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.seed, self.mode = config.logistic, config.seed, config.mode
        self.protocol = replace(PAPER if config.mode == "paper" else HONEST, standardise=self.config.standardise)

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of all parts."""
        statistics = CLIP if self.mode == "paper" else None
        return class_tokens(splits, EvaluationView(img_size, self.config.crop_pct), statistics)

    def judge(self, features: Mapping[str, Features], splits: Splits) -> Score:
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
            "standardise": self.config.standardise,
            "ties": self.protocol.ties,
            "crop_pct": self.config.crop_pct,
            "normalised_by": "CLIP's statistics" if self.mode == "paper" else "the model's own statistics",
            "chosen_on": "val",
        }
        by_penalty = {f"{penalty:.6g}": score for penalty, score in found.val_scores.items()}
        return scored(splits, found.test_scores, test, settings, {"val_by_lambda": by_penalty}, seed=self.seed)
