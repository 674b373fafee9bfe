"""ELEVATER's linear probe as a protocol (spec evaluation §1.4)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from attar.config.evaluate import EvaluateConfig
from attar.data.base import Labels, Rows
from attar.data.labelled import Labelled
from attar.evaluation.datasets import first_fifth_of_each_class, open_dataset, open_training
from attar.evaluation.elevater_probe import Part, Training, probe_elevater
from attar.evaluation.judged import Judged
from attar.evaluation.metrics import METRICS
from attar.evaluation.prompted import Prompts, metric_in, prompts_of
from attar.evaluation.protocols import Need, Score, scored
from attar.evaluation.splits import Splits, images_hash
from attar.evaluation.store import Features
from attar.evaluation.task_data import centre_view, data_root_for, is_benchmark, open_learned
from attar.utils.io import sha256_text

_CROP = 1.0
_SEARCHED = {"pcam": 10_000}  # images of each class that the search sees; that they are the first is unconfirmed


@dataclass(frozen=True)
class Probed:
    """Images in the parts that ELEVATER's probe takes, and what their classes are called.

    Attributes:
        place: Where they are from.
        splits: `train` and `val` of the search, and `test`.
        rest: What only the final training learns from.
        prompts: Names and templates of the classifier that it starts from.
    """

    place: str
    splits: Splits
    rest: Labelled | None
    prompts: Prompts

    @property
    def parts(self) -> dict[str, Labelled]:
        """By name."""
        return self.splits.parts | ({} if self.rest is None else {"rest": self.rest})

    @property
    def origin(self) -> str:
        """For the record."""
        return f"{self.splits.origin}; {self.prompts}"

    @property
    def metric(self) -> str:
        """Name of what is reported."""
        return self.splits.metric


class Elevater:
    """ELEVATER's probe: batch norm and a linear head on embeddings, started from class names where a model has text.

    Six learning rates and 97 weight decays are searched on `val`, the first fifth of each class; in paper mode the best
    of 50 epochs on `test` is reported, else the last.
    """

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.settings, self.mode = config, config.elevater, config.mode

    def open(self, place: str) -> Probed:
        """The parts of the search, and what is reported."""
        if is_benchmark(place):
            splits, rest = _open_benchmark(place, data_root_for(place, self.config))
        else:
            splits, rest = open_learned(place, self.config), None
        return Probed(place, splits, rest, prompts_of(place, splits.test, self.config))

    def needs(self, data: Probed, img_size: int) -> dict[str, Need]:
        """Projected embeddings of all parts."""
        view = centre_view(data.place, img_size, _CROP)
        return {part: Need(images, view, ("embed",), name=f"{part} images") for part, images in data.parts.items()}

    def judge(self, features: Mapping[str, Features], data: Probed, model: Judged) -> Score:
        """The data set's metric on `test`, in paper mode of shares (trap 6)."""
        parts = {name: (found["embed"], found.labels) for name, found in features.items()}
        metric = metric_in(self.mode, data.metric)
        training = Training(
            METRICS[metric],
            self._start(parts["train"], data, model),
            epochs=self.settings.epochs,
            final_epochs=self.settings.final_epochs,
            batch_size=self.settings.batch_size,
            seed=self.config.seed,
            device=model.device,
        )
        kept = model.folder / f"elevater-{self._key(data, metric, training.start)}.jsonl"
        found = probe_elevater(
            parts["train"], parts["val"], parts["test"], training, mode=self.mode, rest=parts.get("rest"), kept=kept
        )
        protocol = {
            "lr": found.setting.learning_rate,
            "weight_decay": found.setting.weight_decay,
            "trainings": len(found.val_scores),
            "epoch": found.epoch,
            "epochs": self.settings.final_epochs,
            "batch_size": self.settings.batch_size,
            "start": "class names" if model.has_text else "zeros",
            "crop_pct": _CROP,
            "chosen_on": "val; the epoch on the images reported on" if self.mode == "paper" else "val",
        }
        details = {"by_epoch": found.by_epoch, "val": found.val_scores[found.setting]}
        judged = replace(data.splits, metric=metric)
        return scored(judged, found.test_scores, features["test"], protocol, details, seed=self.config.seed)

    def _key(self, data: Probed, metric: str, start: torch.Tensor) -> str:
        """Names a search, for one model: what it learns from and is judged on, where it begins, and how."""
        about = {
            "images": {part: images_hash(data.splits.parts[part]) for part in ("train", "val")},
            "start": hashlib.sha256(start.contiguous().numpy().tobytes()).hexdigest(),
            "metric": metric,
            "epochs": self.settings.epochs,
            "batch_size": self.settings.batch_size,
            "seed": self.config.seed,
        }
        return sha256_text(json.dumps(about, sort_keys=True))[:16]

    def _start(self, train: Part, data: Probed, model: Judged) -> torch.Tensor:
        """(K, D) weights to begin with: the zero-shot classifier, or zeros."""
        if model.has_text:
            return model.classifier(data.prompts.names, data.prompts.templates)
        return torch.zeros(data.splits.num_classes, train[0].shape[1])


def _open_benchmark(place: str, root: str) -> tuple[Splits, Labelled | None]:
    """The toolkit's cut of a data set of the table, and what its search does not see."""
    test = open_dataset(place, root, "test")
    if place not in _SEARCHED:
        train, val = open_training(place, root, rule="elevater")
        return Splits(train, val, test, "as ELEVATER cuts it", metric=test.dataset.metric), None
    whole = open_dataset(place, root, "train")
    seen, rest = first_of_each_class(whole.labels, _SEARCHED[place])
    searched = whole.take(seen)
    train, val = (searched.take(rows) for rows in first_fifth_of_each_class(searched.labels))
    splits = Splits(train, val, test, f"as ELEVATER cuts {len(seen):,} images", metric=test.dataset.metric)
    return splits, whole.take(rest) if len(rest) else None


def first_of_each_class(labels: Labels, count: int) -> tuple[Rows, Rows]:
    """(rows of the first `count` images of each class, all other rows)."""
    is_seen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_seen[np.flatnonzero(labels == label)[:count]] = True
    return np.flatnonzero(is_seen), np.flatnonzero(~is_seen)
