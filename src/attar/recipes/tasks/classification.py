"""Classification: a class for each image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.config import TransferConfig
from attar.config.transfer import AdaptConfig, FinetuneConfig, HeadKind
from attar.data.labelled import Labelled
from attar.data.loader import ViewDataset
from attar.data.sampler import ViewOrder
from attar.data.sources import Source
from attar.data.subset import SubsetSource
from attar.evaluation.embedding import embed_labelled
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.logistic_probe import best_penalty, final_fit, sweep_penalties
from attar.evaluation.metrics import Metric, top1
from attar.evaluation.predictions import predict_labelled
from attar.evaluation.splits import images_hash
from attar.export import library_of, with_classifier
from attar.methods import TASKS
from attar.models import Backbone, TaskModel
from attar.recipes.task_images import TaskImages, open_task_images
from attar.recipes.tasks.base import FittedHead, OpenedTask, Rows

_UNHEARD_OF = -30.0  # log-probability of a class that nobody was shown, for which a head has no finite one
_MEAN = Metric("gain", lambda difference: (difference,), float, "mean")


class Classification(OpenedTask):
    """Linear heads, top-1. Rows are (scores (n, K), classes (n,))."""

    losses = TASKS["classification"]
    tokens = "cls"
    metrics = ("top1", "mean_per_class")
    figure = ""
    usage: ClassVar[str] = (
        "```python\nimport timm\n"
        'model = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()\n'
        "logits = model(images)  # images normalised with mean and std of config.json, classes in label_names\n```\n\n"
        "`attar predict FOLDER --data DIR --out FILE.csv` uses it."
    )

    def __init__(self, images: TaskImages, config: TransferConfig, *, workers: int) -> None:
        self.images, self.config, self.workers = images, config, workers
        self.class_names, self.origin = images.class_names, images.origin
        self.counts = {"train": len(images.train), **{name: len(part) for name, part in images.parts.items()}}
        self.hashes = {"train": images_hash(images.train), "val": images_hash(images.val)}

    @classmethod
    def open(cls, config: TransferConfig, *, workers: int) -> Classification:
        """See `OpenedTask`."""
        return cls(open_task_images(config), config, workers=workers)

    def few(self, count: int) -> Classification:
        """Drawn evenly, so that classes that lie one after another are all there."""
        images = self.images
        train, val = _few(images.train, count), _few(images.val, count)
        test = None if images.test is None else _few(images.test, count)
        return Classification(replace(images, train=train, val=val, test=test), self.config, workers=self.workers)

    def new_model(self, backbone: Backbone, *, head: HeadKind) -> TaskModel:
        """With a linear head, the only kind."""
        return TaskModel.classifier(backbone, self.class_names)

    def check_ships(self, model: TaskModel) -> None:
        """A timm student takes its head with it."""
        if library_of(model.backbone) == "timm":
            with_classifier(model)

    def fit_head(self, model: TaskModel, *, refit: bool) -> FittedHead:
        """Logistic regression on class tokens; of penalties that are right as often, the one surest of what is right.

        A student is to learn from its probabilities. The strongest of equals, which is what the protocols that only
        count take, gives all classes nearly the same probability where the task is easy.
        """
        embed = partial(embed_labelled, model.backbone, crop_pct=self.config.crop_pct, workers=self.workers)
        known = embed(self.images.train, name="images to learn from")
        val = embed(self.images.val, name="validation images")
        scores = sweep_penalties(known, val, metric=top1_then_likelihood, num_classes=len(self.class_names))
        penalty = best_penalty(scores, ties="larger")
        chosen = final_fit(*known, penalty).head
        says = chosen.logits(val[0])
        if refit:
            features, labels = (torch.cat(pair) for pair in zip(known, val, strict=True))
            chosen = final_fit(features, labels, penalty).head
        with torch.no_grad():
            linear: Any = model.head
            linear.weight.zero_()[: len(chosen.weight)] = chosen.weight
            linear.bias.fill_(-1e4)[: len(chosen.bias)] = chosen.bias.clamp_min(-1e4)  # of classes without an example
        return FittedHead(penalty, (says, val[1]), self.num_labels)

    def stream(self, backbone: Backbone, section: AdaptConfig | FinetuneConfig) -> ViewDataset:
        """Random crops with the image's class."""
        source = self.images.stream
        order = ViewOrder(len(source), self.config.seed, section.views.repeats)
        return ViewDataset(source, order, section.views, backbone.img_size, labels=self.images.train.labels)

    def predict(self, model: TaskModel, part: str) -> Rows:
        """Logits and classes."""
        labelled = self.images.parts[part]
        return predict_labelled(
            model, labelled, crop_pct=self.config.crop_pct, workers=self.workers, name=f"{part} images"
        )

    def source_of(self, part: str) -> Source:
        """See `OpenedTask`."""
        labelled = self.images.parts[part]
        return SubsetSource(labelled.source, labelled.rows)

    def details(self, rows: Rows) -> dict[str, Any]:
        """None."""
        return {}

    def protocol(self) -> dict[str, Any]:
        """The crop."""
        return {"crop_pct": self.config.crop_pct}

    def gain(self, ours: Rows, theirs: Rows, *, seed: int) -> tuple[float, tuple[float, float]]:
        """Of the share of images that are right."""
        difference = _hits(ours) - _hits(theirs)
        return difference.mean().item(), bootstrap_interval(_MEAN, difference, seed=seed)


def top1_then_likelihood(scores: Tensor, targets: Tensor) -> float:
    """Share of rows that are right, plus less than one row: half of one, by how likely the targets are.

    Args:
        scores: (n, K).
        targets: (n,) int64 in [0, K).
    """
    of_targets = -F.cross_entropy(scores.double(), targets, reduction="none")
    likelihood = of_targets.clamp_min(_UNHEARD_OF).mean().exp().item()
    return top1(scores, targets) + likelihood / (2 * len(targets))


def _few(images: Labelled, count: int) -> Labelled:
    return images.take(np.unique(np.linspace(0, len(images) - 1, count).round().astype(np.int64)))


def _hits(rows: Rows) -> Tensor:
    scores, targets = rows
    return (scores.argmax(1) == targets).double()
