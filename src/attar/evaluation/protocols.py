"""Protocols on frozen features: what each needs of a backbone, and the score it makes of that.

What they need is told first, so that one pass over the images serves all protocols that see the same view; then each
judges what lies in the feature store, without the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.knn import knn_scores, knn_votes
from attar.evaluation.metrics import METRICS
from attar.evaluation.outputs import Output
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
    """

    images: Labelled
    view: EvaluationView
    outputs: tuple[Output, ...]
    statistics: Statistics | None = None


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


class FeatureProtocol(Protocol):
    """A protocol that asks a backbone for nothing but stored features."""

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """What to embed, under names of its own."""
        ...

    def judge(self, features: Mapping[str, Features], splits: Splits) -> Score:
        """The score, from features under the same names."""
        ...
