"""Linear probe by SGD: 52 heads on the last tokens of a frozen backbone, trained together (spec evaluation §1.1).

DINOv2's protocol, which Proteus follows: the heads read the last class token or the last four, with or without the mean
patch token, at 13 learning rates; one of them is chosen by accuracy and judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from attar.errors import ConfigError, NonFiniteError, ShapeError
from attar.evaluation.metrics import top1
from attar.evaluation.probe_features import LAYOUTS, Layout, ProbeFeatures
from attar.evaluation.probe_heads import ProbeHeads
from attar.evaluation.probe_training import Heads, ProbeSchedule, train_heads
from attar.utils.progress import track

DINOV2_CODE_LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""Of facebookresearch/dinov2 and of Proteus' released script, for a batch of 256."""

DINOV2_PAPER_LRS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.3, 0.5)
"""As DINOv2's paper prints them (arXiv 2304.07193, appendix B.3); the released code has others."""

SYNCLR_LRS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5)
"""Of SynCLR (arXiv 2312.17742), for a batch of 256; it reads the last class token alone, 90 epochs, batch 1,024."""

_JUDGED = 1024  # images judged at a time: memory is so many x classes x learning rates

Mode = Literal["paper", "honest"]


@dataclass(frozen=True)
class ProbeHead:
    """One trained head.

    Attributes:
        layout: What it reads.
        lr: Its learning rate for a batch of 256.
        weight: (K, W) on the CPU.
        bias: (K,).
    """

    layout: Layout
    lr: float
    weight: Tensor
    bias: Tensor

    def logits(self, features: ProbeFeatures) -> Tensor:
        """(n, K) of the first view, or (n, C) where the features have a `class_index`."""
        here = features.columns(self.layout)
        parts = [rows[:, here].to(self.weight) @ self.weight.T + self.bias for _, rows in _in_order(features)]
        logits = torch.cat(parts)
        return logits if features.class_index is None else logits[:, features.class_index]


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        mode: `paper` chose the head on the test part itself, as DINOv2 and Proteus do; `honest` on a validation part.
        scores: Top-1 share of each head on the part it was chosen by, as `blocks=4 avgpool lr=1e-3`, in order.
        chosen: Name of the best, the first of equals.
        head: The best.
        test: Its top-1 share on `test` and on each other part.
        absent: Layouts of the protocol that the backbone cannot give.
        batch_size: Images of a step; all there are where they are fewer than a batch.
        steps: Steps of each head.
    """

    mode: Mode
    scores: Mapping[str, float]
    chosen: str
    head: ProbeHead
    test: Mapping[str, float]
    absent: tuple[Layout, ...]
    batch_size: int
    steps: int


def linear_probe(
    train: ProbeFeatures,
    test: ProbeFeatures,
    *,
    mode: Mode,
    val: ProbeFeatures | None = None,
    others: Mapping[str, ProbeFeatures] | None = None,
    learning_rates: Sequence[float] = DINOV2_CODE_LRS,
    batch_size: int = 512,
    epochs: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    state: Path | None = None,
) -> ProbeResult:
    """The best of all heads on a part it is chosen by, and its top-1 share on the test parts.

    Each head minimises its own mean cross-entropy by SGD with momentum 0.9, no weight decay, and a learning rate that
    falls from lr * batch / 256 to 0 on a cosine. The settings by default are those of Proteus (512 images, 10 epochs).

    Args:
        train: Images to fit on; epoch e reads view e modulo V. Its largest label counts the classes.
        test: Images to report; of these and the following the first view is read.
        mode: `paper` chooses the head on `test`, `honest` on `val`.
        val: Images to choose the head by; only `honest` reads them.
        others: More test parts by name, judged by the head that was chosen, as ImageNetV2 or ImageNet-A.
        learning_rates: For a batch of 256.
        batch_size: Images of a step.
        epochs: Passes through the images.
        seed: Names the starts of the heads and the order of the images.
        dtype: Of weights and products.
        device: Where the heads are.
        state: Folder in which the training is saved now and then, and from which it goes on.

    Raises:
        ConfigError: If `honest` has nothing to choose by.
        ShapeError: If a part's tokens or labels are not like those of `train`.
        CheckpointError: If `state` belongs to another probe.
        NonFiniteError: If not even the best head is finite.
    """
    parts = {"test": test, **(others or {})}
    chosen_by = _part_to_choose_by(mode, test, val)
    _check_alike(train, [chosen_by, *parts.values()])
    schedule = ProbeSchedule(len(train), min(batch_size, len(train)), epochs, seed)
    heads = _new_heads(train, [schedule.lr(lr) for lr in learning_rates], seed=seed, dtype=dtype, device=device)
    train_heads(heads, train, schedule, state=state)
    scores = _scores(heads, chosen_by, learning_rates)
    chosen = max(scores, key=scores.__getitem__)  # the first of equals
    best = _extract(heads, learning_rates, list(scores).index(chosen))
    return ProbeResult(
        mode=mode,
        scores=scores,
        chosen=chosen,
        head=best,
        test={name: top1(best.logits(part), part.labels) for name, part in parts.items()},
        absent=tuple(layout for layout in LAYOUTS if layout not in heads),
        batch_size=schedule.batch_size,
        steps=schedule.steps,
    )


def head_name(layout: Layout, lr: float) -> str:
    """As `blocks=4 avgpool lr=1e-3`."""
    return f"{layout} lr={np.format_float_scientific(lr, trim='-', exp_digits=1)}"


def _part_to_choose_by(mode: Mode, test: ProbeFeatures, val: ProbeFeatures | None) -> ProbeFeatures:
    if mode == "paper":
        return test
    if val is None:
        raise ConfigError(
            "mode 'honest' chooses among the heads on a validation part, and there is none."
            " Give val, or take mode='paper', which chooses on the test part itself."
        )
    return val


def _check_alike(train: ProbeFeatures, parts: Sequence[ProbeFeatures]) -> None:
    num_classes = int(train.labels.max()) + 1
    for part in parts:
        if part.layouts != train.layouts or part.cls[0].shape[2] != train.cls[0].shape[2]:
            raise ShapeError(
                f"the tokens of a part are {tuple(part.cls[0].shape)} but of the training part"
                f" {tuple(train.cls[0].shape)};"
                " only views and images may differ. Compute all of them with the same backbone and blocks."
            )
        classes = np.arange(num_classes) if part.class_index is None else part.class_index.numpy()
        if int(part.labels.max()) >= len(classes) or classes.max() >= num_classes:
            raise ShapeError(
                f"a part has class {int(part.labels.max())} of {len(classes)}, the last of which is logit"
                f" {classes.max()}; heads of {num_classes} classes have logits 0 to {num_classes - 1}."
                " Train on images of all classes, or give the part a class_index into theirs."
            )


def _new_heads(
    train: ProbeFeatures, rates: Sequence[float], *, seed: int, dtype: torch.dtype, device: str | torch.device
) -> Heads:
    num_classes = int(train.labels.max()) + 1
    return {
        layout: ProbeHeads(
            train.width(layout), num_classes, rates, seed=seed, name=str(layout), dtype=dtype, device=device
        )
        for layout in train.layouts
    }


def _scores(heads: Heads, features: ProbeFeatures, learning_rates: Sequence[float]) -> dict[str, float]:
    """Top-1 share of each head, by name, on the first view."""
    hits: dict[str, int] = {head_name(layout, lr): 0 for layout in heads for lr in learning_rates}
    for start, rows in _in_order(features):
        labels = features.labels[start : start + len(rows)]
        for layout, some in heads.items():
            logits = some.logits(rows[:, features.columns(layout)].to(some.weight))
            if features.class_index is not None:
                logits = logits[:, features.class_index]
            for lr, found in zip(learning_rates, (logits.argmax(1).cpu() == labels).sum(1), strict=True):
                hits[head_name(layout, lr)] += int(found)
    return {name: count / len(features) for name, count in hits.items()}


def _extract(heads: Heads, learning_rates: Sequence[float], place: int) -> ProbeHead:
    """The head at a place of the order in which `_scores` names them."""
    layout, number = list(heads)[place // len(learning_rates)], place % len(learning_rates)
    weight, bias = heads[layout].weight[number], heads[layout].bias[number]
    if not weight.isfinite().all():
        raise NonFiniteError(
            "the best head has weights that are not finite: so are the training tokens, or they are far too large."
            " Compute them again in float32."
        )
    return ProbeHead(layout, learning_rates[number], weight.cpu().clone(), bias.cpu().clone())


def _in_order(features: ProbeFeatures) -> Iterator[tuple[int, Tensor]]:
    """(number of the first, tokens) of some images at a time, of the first view."""
    starts = range(0, len(features), _JUDGED)
    for start in track(starts, "judging heads", total=len(starts), unit="batches"):
        yield start, features.rows(np.arange(start, min(start + _JUDGED, len(features))))
