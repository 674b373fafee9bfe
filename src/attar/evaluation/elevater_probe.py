"""ELEVATER's linear probe: learning rate and weight decay searched from coarse to fine, then a longer training.

Spec evaluation §1.4, after Elevater_Toolkit_IC. Trainings that do not wait for each other run stacked, in one product
of matrices a step: the seven coarse weight decays for all learning rates, then the two neighbours of each best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import DataError, NonFiniteError
from attar.evaluation.elevater_heads import DecayedHeads
from attar.evaluation.metrics import Metric
from attar.utils.io import append_line, read_lines
from attar.utils.progress import track
from attar.utils.seeding import torch_generator

Part = tuple[Tensor, Tensor]
"""(n, D) features, and (n,) classes or (n, K) of 0 and 1."""

LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
WEIGHT_DECAYS: tuple[float, ...] = tuple(np.logspace(-6, 6, 97).tolist())

_COARSE = range(0, len(WEIGHT_DECAYS), 16)
_STEPS = (8, 4, 2, 1)
_NUMBERS = 1 << 27  # weights held at a time, of all trainings that are stacked
_DIVERGED = -1.0  # below every metric


@dataclass(frozen=True)
class Setting:
    """A point of the grid.

    Attributes:
        rate: Place in `LEARNING_RATES`.
        decay: Place in `WEIGHT_DECAYS`.
    """

    rate: int
    decay: int

    @property
    def learning_rate(self) -> float:
        return LEARNING_RATES[self.rate]

    @property
    def weight_decay(self) -> float:
        return WEIGHT_DECAYS[self.decay]


@dataclass(frozen=True)
class Training:
    """How heads are trained.

    Attributes:
        metric: Judges (scores, targets); more is better.
        start: (K, D) weight to begin with, such as a zero-shot classifier.
        epochs: Of each training of the search.
        final_epochs: Of the last one.
        batch_size: Features in a step; a last batch of one is left out, for it has no variance.
        seed: Names the order of the images.
        device: Where all this happens.
    """

    metric: Metric
    start: Tensor
    epochs: int = 10
    final_epochs: int = 50
    batch_size: int = 64
    seed: int = 0
    device: str | torch.device = "cpu"


@dataclass(frozen=True)
class ElevaterProbe:
    """What a probe found.

    Attributes:
        setting: The chosen point of the grid.
        val_scores: The best epoch's metric on `val`, of every point that was tried.
        epoch: Which epoch of the final training is reported, from 1.
        by_epoch: Metric on `test` after each.
        test_scores: (n, K) of the test images after that epoch.
    """

    setting: Setting
    val_scores: Mapping[Setting, float]
    epoch: int
    by_epoch: tuple[float, ...]
    test_scores: Tensor


def probe_elevater(
    train: Part,
    val: Part,
    test: Part,
    training: Training,
    *,
    mode: Literal["paper", "honest"],
    rest: Part | None = None,
    kept: Path | None = None,
) -> ElevaterProbe:
    """Search on `train` and `val`, train on both and `rest`, judge on `test`.

    Args:
        train: What the search learns from.
        val: What it chooses by.
        test: What is reported; `paper` reports the best epoch on it (trap 7), `honest` the last.
        training: How heads are trained.
        mode: `paper` or `honest`.
        rest: More to learn from in the final training.
        kept: File for what the search has found, from which the same search goes on.

    Raises:
        DataError: If there are fewer than two images to learn from, or none to choose by.
        NonFiniteError: If the final training diverges.
    """
    if len(train[0]) < 2 or not len(val[0]):
        raise DataError(
            f"{len(train[0])} images to learn from and {len(val[0])} to choose by are too few for a search."
        )
    val_scores = search(train, val, training, kept=kept)
    setting = max(val_scores, key=lambda one: (val_scores[one], -one.rate, -one.decay))  # of equals the smaller
    parts = [train, val, *([rest] if rest is not None else [])]
    whole = (torch.cat([features for features, _ in parts]), torch.cat([targets for _, targets in parts]))
    epoch, by_epoch, scores = _final(whole, test, setting, training, mode)
    return ElevaterProbe(setting, val_scores, epoch, by_epoch, scores)


def search(train: Part, val: Part, training: Training, *, kept: Path | None = None) -> dict[Setting, float]:
    """Metric on `val` of all points that the search tries: 15 at most for each learning rate.

    For each learning rate every 16th weight decay, then from the best one 8, 4, 2 and 1 places to either side, moving
    where that is strictly better.

    Args:
        train: What is learned from.
        val: What is judged on.
        training: How heads are trained.
        kept: File that a line for each trained point is added to; points that it has are not trained again.
    """
    rates = range(len(LEARNING_RATES))
    known = _Known(kept)
    found = known.scores
    _measure([Setting(rate, decay) for rate in rates for decay in _COARSE], known, train, val, training)
    best = [max((Setting(rate, decay) for decay in _COARSE), key=found.__getitem__) for rate in rates]
    for step in _STEPS:
        sides = [[one, *_beside(one, step)] for one in best]
        _measure([side for group in sides for side in group[1:]], known, train, val, training)
        best = [max(group, key=found.__getitem__) for group in sides]  # of equals the first, which stays
    return found


def _beside(setting: Setting, step: int) -> list[Setting]:
    places = (setting.decay - step, setting.decay + step)
    return [Setting(setting.rate, place) for place in places if 0 <= place < len(WEIGHT_DECAYS)]


class _Known:
    """What a search has found, in memory and, where it is kept, in a file."""

    def __init__(self, kept: Path | None) -> None:
        lines = read_lines(kept) if kept is not None and kept.is_file() else []
        self.kept = kept
        self.scores = {Setting(line["rate"], line["decay"]): float(line["score"]) for line in lines}

    def add(self, found: Mapping[Setting, float]) -> None:
        self.scores.update(found)
        if self.kept is not None:
            self.kept.parent.mkdir(parents=True, exist_ok=True)
            for setting, score in found.items():
                append_line(self.kept, asdict(setting) | {"score": score})


def _measure(settings: Sequence[Setting], known: _Known, train: Part, val: Part, training: Training) -> None:
    """Add the best epoch's metric of each setting.

    Stacks hold what they would if nothing were known, so that a search that goes on gives the same numbers.
    """
    at_once = max(1, _NUMBERS // training.start.numel())
    for start in range(0, len(settings), at_once):
        stack = settings[start : start + at_once]
        if all(setting in known.scores for setting in stack):
            continue
        best = [_DIVERGED] * len(stack)
        for heads, norm in _epochs(train, stack, training, training.epochs, "choosing settings"):
            scores = [score for score, _ in _judge(heads, norm, val, training)]
            best = [max(pair) for pair in zip(best, scores, strict=True)]
        known.add(dict(zip(stack, best, strict=True)))


def _final(
    whole: Part, test: Part, setting: Setting, training: Training, mode: str
) -> tuple[int, tuple[float, ...], Tensor]:
    """(epoch from 1, metric after each epoch, test scores after that epoch)."""
    by_epoch: list[float] = []
    epoch, kept = 0, torch.empty(0)
    for heads, norm in _epochs(whole, [setting], training, training.final_epochs, "training finally"):
        ((score, logits),) = _judge(heads, norm, test, training)
        if score > max(by_epoch, default=_DIVERGED) or mode == "honest":
            epoch, kept = len(by_epoch) + 1, logits
        by_epoch.append(score)
    if epoch == 0 or not kept.isfinite().all():
        raise NonFiniteError(
            f"the final training diverged at lr {setting.learning_rate:g}, weight decay {setting.weight_decay:g}."
            " Check the features, or train for fewer epochs."
        )
    return epoch, tuple(by_epoch), kept


def _epochs(
    part: Part, settings: Sequence[Setting], training: Training, epochs: int, name: str
) -> Iterator[tuple[DecayedHeads, nn.BatchNorm1d]]:
    """Heads and their common batch norm, in eval mode, after each epoch."""
    features, targets = (tensor.to(training.device) for tensor in part)
    start = training.start.to(features)
    rates, decays = [one.learning_rate for one in settings], [one.weight_decay for one in settings]
    heads = DecayedHeads(start, rates, decays, is_multi_label=targets.ndim == 2)
    norm = nn.BatchNorm1d(features.shape[1], affine=False).to(features)  # sees the same batches for every head
    for epoch in track(range(epochs), name, total=epochs, unit="epochs"):
        norm.train()
        generator = torch_generator(training.seed, "elevater", epoch)
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for rows in torch.split(order, training.batch_size):
            if len(rows) > 1:
                heads.step(norm(features[rows]), targets[rows])
        yield heads, norm.eval()


def _judge(heads: DecayedHeads, norm: nn.BatchNorm1d, part: Part, training: Training) -> Iterator[tuple[float, Tensor]]:
    """(metric, logits (n, K)) of each head; of one that diverged a metric below all others."""
    features, targets = norm(part[0].to(training.device)), part[1].cpu()
    for head in range(len(heads)):
        logits = heads.logits_of(head, features).cpu()
        yield training.metric(logits, targets) if logits.isfinite().all() else _DIVERGED, logits
