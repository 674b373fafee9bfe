"""The few-shot probe as a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from attar.config.evaluate import EvaluateConfig
from attar.data.views import EvaluationView
from attar.errors import ConfigError
from attar.evaluation.few_shot import FewShot, probe_few_shot
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.judged import Judged
from attar.evaluation.metrics import METRICS, Metric
from attar.evaluation.protocols import Need, Score, class_tokens
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features
from attar.evaluation.task_data import open_learned


class FewShotProbe:
    """Logistic regression on a few class tokens of each class: the mean over several draws, and their spread.

    The same in both modes: nothing is chosen, so images are drawn from `train` and `val` alike.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.settings = config, config.few_shot

    def open(self, place: str) -> Splits:
        """Images to draw from, and to report."""
        splits = open_learned(place, self.config)
        if splits.test.labels.ndim != 1:
            raise ConfigError(f"images of {place} have several classes, and few_shot draws so many of each class.")
        return splits

    def needs(self, splits: Splits, img_size: int) -> dict[str, Need]:
        """Class tokens of all parts."""
        return class_tokens(splits, EvaluationView(img_size, self.settings.crop_pct))

    def judge(self, features: Mapping[str, Features], splits: Splits, model: Judged) -> Score:
        """The data set's metric on `test`, mean over draws."""
        drawn, test, metric = [features["train"], features["val"]], features["test"], METRICS[splits.metric]
        found = probe_few_shot(
            (torch.cat([part["cls"] for part in drawn]), torch.cat([part.labels for part in drawn])),
            (test["cls"], test.labels),
            shots=self.settings.shots,
            seeds=self.settings.seeds,
            metric=metric,
            penalty=self.settings.penalty,
        )
        protocol = self.settings.model_dump(mode="json") | {"chosen_on": "nothing is chosen"}
        details = {"by_seed": found.values, "spread": found.spread}
        interval = mean_interval(metric, found, test.labels, seed=self.config.seed)
        return Score(metric.name, found.mean, interval, len(test), protocol, details)


def mean_interval(metric: Metric, found: FewShot, labels: Tensor, *, seed: int) -> tuple[float, float]:
    """95 % interval of the mean over draws, by bootstrap over test images: the draws are judged on the same ones."""
    by_draw = [metric.per_row(scores, labels) for scores in found.scores]
    width = len(by_draw[0])

    def mean(*rows: Tensor) -> float:
        return fmean(metric.of_rows(*rows[start : start + width]) for start in range(0, len(rows), width))

    return bootstrap_interval(mean, *(row for rows in by_draw for row in rows), seed=seed)
