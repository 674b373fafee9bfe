"""An ImageNet head on other classes than its own, and a head that is trained once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attar.config import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.errors import ShapeError
from attar.evaluation.judged import Judged
from attar.evaluation.kept_probe import kept_probe
from attar.evaluation.linear_protocol import Linear, probe_features
from attar.evaluation.metrics import METRICS
from attar.evaluation.shifts_protocol import LinearOnShift, Shift, among_classes
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features

CLASSES, WIDTH = 5, 8
CENTRES = torch.randn(CLASSES, 1, WIDTH, generator=torch.Generator().manual_seed(3))


def features(count: int, seed: int, labels: torch.Tensor | None = None) -> Features:
    shown = torch.arange(count) % CLASSES
    cls = CENTRES[shown] + 0.1 * torch.randn(count, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Features({"last4": cls, "mean_patch": cls[:, 0]}, shown if labels is None else labels, torch.arange(count))


def images(found: Features, name: str) -> Labelled:
    count = len(found)
    source = ListedFiles(Path("nowhere"), [f"{name}{number}" for number in range(count)])
    return Labelled(source, np.arange(count), found.labels.numpy(), tuple(map(str, range(CLASSES))))


def config(mode: str = "honest") -> EvaluateConfig:
    return EvaluateConfig(
        model="m", tasks="linear:imagenet", out="o", mode=mode, linear={"epochs": 20, "batch_size": 8}
    )


def test_of_several_classes_the_largest_logit_counts_and_others_never_win() -> None:
    """A mean of a group's logits, or an argmax over all that is looked up afterwards, would choose otherwise."""
    logits = torch.tensor([[9.0, 1.0, -8.0, 3.0, 2.0]])
    assert among_classes(logits, ((1,), (2, 3), (4,))).tolist() == [[1.0, 3.0, 2.0]]
    assert among_classes(logits, ((4,), (1,))).tolist() == [[2.0, 1.0]]
    with pytest.raises(ShapeError, match="stands for two classes"):
        among_classes(logits, ((1,), (1,)))


def test_the_head_of_imagenet_is_trained_once_and_judges_the_shift_by_its_classes(tmp_path: Path) -> None:
    parts = {"train": features(60, 0), "val": features(20, 1), "test": features(20, 2)}
    splits = Splits(*(images(part, name) for name, part in parts.items()), "by hand")
    given = {"train, view 0": parts["train"], "val": parts["val"], "test": parts["test"]}
    model = Judged("m", tmp_path)
    assert Linear(config()).judge(given, splits, model).value > 0.7
    (kept,) = tmp_path.iterdir()  # and nothing unfinished beside it
    written = (kept / "probe.json").stat().st_mtime_ns

    shown = torch.arange(20) % CLASSES
    own = torch.tensor([0, 1, 1, 0, 2])[shown]  # its class 0 is the head's 0 or 3, its class 1 the head's 1 or 2
    shifted = features(20, 5, own)
    shift = Shift("objectnet", splits, {"test": images(shifted, "o")}, ((0, 3), (1, 2), (4,)), "top1")
    noise = replace(parts["train"], arrays={name: torch.rand_like(a) for name, a in parts["train"].arrays.items()})
    found = LinearOnShift(config()).judge(given | {"train, view 0": noise, "objectnet test": shifted}, shift, model)
    probe = kept_probe(kept)
    assert probe is not None
    logits = probe.head.logits(probe_features(shifted))
    merged = torch.stack([logits[:, [0, 3]].amax(1), logits[:, [1, 2]].amax(1), logits[:, 4]], dim=1)
    assert found.value == METRICS["top1"](merged, own)
    assert found.value > 0.7  # a head trained on noise would not know them
    assert found.n == 20
    assert (kept / "probe.json").stat().st_mtime_ns == written


def test_another_choice_or_other_images_are_another_head(tmp_path: Path) -> None:
    """Kept for the model alone, a head chosen on the test part would stand in an honest result."""
    parts = {"train": features(60, 0), "val": features(20, 1), "test": features(20, 2)}
    splits = Splits(*(images(part, name) for name, part in parts.items()), "by hand")
    given = {f"train, view {number}": parts["train"] for number in range(10)} | parts
    model = Judged("m", tmp_path)
    Linear(config()).judge(given, splits, model)
    Linear(config("paper")).judge(given, splits, model)
    assert len(list(tmp_path.iterdir())) == 2
    Linear(config()).judge(given, replace(splits, val=images(parts["val"], "other")), model)
    assert len(list(tmp_path.iterdir())) == 3
