"""The zero-shot protocol on embeddings that are there: metrics of its modes, and classifiers kept for a text tower."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attar.config import EvaluateConfig
from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.errors import ConfigError
from attar.evaluation.judged import Judged
from attar.evaluation.metrics import METRICS
from attar.evaluation.prompted import Prompted, Prompts, metric_in
from attar.evaluation.store import Features
from attar.evaluation.zero_shot import zero_shot_logits
from attar.evaluation.zero_shot_protocol import ZeroShot
from attar.models import TextTower
from attar.models.backbone import Provenance

IMAGES, CLASSES, WIDTH = 60, 6, 8
NAMES = ("cat", "dog", "owl", "bee", "ant", "elk")


class Letters(nn.Module):
    """The mean of what stands for each letter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(
            torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(seed))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).mean(1)


def letters(texts: list[str]) -> Tensor:
    return torch.tensor([list(text.ljust(20).encode()) for text in texts])


def tower(seed: int = 0) -> TextTower:
    source = Provenance("letters")
    return TextTower(
        Letters(seed), letters, embed_dim=WIDTH, context_length=20, logit_scale=None, source=source, config={}
    )


def judge(folder: Path, metric: str, targets: Tensor, mode: str = "honest"):
    embeddings = torch.randn(IMAGES, WIDTH, generator=torch.Generator().manual_seed(1))
    features = Features({"embed": embeddings}, targets, torch.arange(IMAGES))
    images = Labelled(ListedFiles(folder, ["a.png"] * IMAGES), np.arange(IMAGES), targets.numpy(), NAMES)
    data = Prompted("mine", {"test": images}, Prompts(NAMES, ("a {}.", "the {}.")), metric)
    config = EvaluateConfig(model="m", tasks="zero_shot:mine", out="o", mode=mode)
    model = Judged("m", folder, load_text=tower)
    found = ZeroShot(config).judge({"test": features}, data, model)
    return found, zero_shot_logits(embeddings, model.classifier(NAMES, ("a {}.", "the {}.")))


def test_top1_top5_and_mean_per_class(tmp_path: Path) -> None:
    labels = (torch.arange(IMAGES) ** 2) % CLASSES
    found, logits = judge(tmp_path, "mean_per_class", labels)
    assert found.value == METRICS["mean_per_class"](logits, labels)
    assert set(found.details) == {"top1", "top5", "mean_per_class"}
    assert found.details["top5"] == METRICS["top5"](logits, labels) > found.details["top1"]


def test_paper_mode_judges_shares_as_elevater_does(tmp_path: Path) -> None:
    """Spec evaluation, trap 6: a softmax over classes changes the order of images within a class."""
    targets = (torch.rand(IMAGES, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.3).long()
    found, logits = judge(tmp_path, "map11", targets, "paper")
    assert found.value == METRICS["map11"](logits.softmax(1), targets) != METRICS["map11"](logits, targets)
    assert metric_in("paper", "roc_auc") == "roc_auc_softmax"
    assert metric_in("honest", "map11") == "map11"
    assert metric_in("paper", "top1_of_sets") == "top1_of_sets"


def test_a_classifier_is_kept_for_its_words_and_its_tower(tmp_path: Path) -> None:
    """Kept by names alone it would answer for another tower's weights, or for other templates."""
    first = Judged("m", tmp_path, load_text=tower)
    found = first.classifier(NAMES, ("a {}.",))
    (file,) = tmp_path.glob("classifier-*")
    written = file.stat().st_mtime_ns
    assert torch.equal(Judged("m", tmp_path, load_text=tower).classifier(NAMES, ("a {}.",)), found)
    assert file.stat().st_mtime_ns == written
    assert not torch.equal(first.classifier(NAMES, ("the {}.",)), found)
    assert not torch.equal(first.classifier(NAMES[::-1], ("a {}.",)), found)
    assert not torch.equal(replace(first, load_text=lambda: tower(1)).classifier(NAMES, ("a {}.",)), found)


def test_a_model_without_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="m has no text tower"):
        Judged("m", tmp_path).classifier(NAMES, ("a {}.",))
