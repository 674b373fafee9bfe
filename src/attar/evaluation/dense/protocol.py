"""Protocols on annotated images: a head is trained on a backbone, chosen by its mode, and judged on whole images."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn

from attar.config import DenseProbeConfig, EvaluateConfig
from attar.data.geometry import Geometry
from attar.data.pairs import Pair
from attar.errors import ConfigError
from attar.evaluation.dense.model import DenseModel
from attar.evaluation.dense.recipe import Recipe
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.state import StateFolder
from attar.evaluation.dense.targets import Rows, Target
from attar.evaluation.dense.training import Choice, fit
from attar.evaluation.dense.view import View
from attar.evaluation.dense.windows import judge_part
from attar.evaluation.metrics import METRICS
from attar.evaluation.outputs import fingerprint, normalising_by
from attar.evaluation.protocols import Score
from attar.models import Backbone
from attar.models.pixel_heads import Tap
from attar.utils.io import sha256_text
from attar.utils.seeding import seeded_torch

_NUMBERS = ("steps", "batch_size", "lr", "weight_decay", "warmup_steps", "fine_tune", "layers")
_EPOCHS, _FEWEST = 20, 1000  # of a head in honest mode, and steps of the shortest training


class DenseProtocol(Protocol):
    """A protocol that judges a backbone by what it says of every pixel."""

    def img_size(self, default: int, *, patch_size: int) -> int:
        """The input size in pixels that the backbone must be loaded at.

        Args:
            default: What it is loaded at where nobody asks for more.
            patch_size: Of the backbone, in pixels.
        """
        ...

    def judge(
        self,
        backbone: Backbone,
        splits: DenseSplits,
        *,
        device: str | torch.device = "cpu",
        workers: int = 0,
        state: Path | None = None,
    ) -> Score:
        """The score of a backbone, which keeps its weights.

        Args:
            backbone: On `device`, loaded at `img_size`.
            splits: Annotated images.
            device: Where the head is trained.
            workers: Processes that make crops.
            state: Folder for a half-trained head, from which the same call goes on; removed in the end.
        """
        ...


class TrainedProbe(ABC):
    """A head trained by gradient steps. In honest mode the best of several moments by `val` is reported on `test`.

    In paper mode the numbers are the paper's, the last weights are reported, or the best by `test` where the paper
    does so, and the head learns from `val` too.
    """

    paper_choice: ClassVar[Literal["the last step", "test", "val"]] = "the last step"
    departures: ClassVar[tuple[str, ...]] = ()
    """Where paper mode does otherwise than the paper, for the record."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config, self.mode, self.seed = config.dense, config.mode, config.seed

    @abstractmethod
    def paper(self, backbone: Backbone) -> Recipe:
        """The paper's numbers for this backbone."""

    @abstractmethod
    def target(self, splits: DenseSplits, recipe: Recipe) -> Target:
        """What is predicted."""

    @abstractmethod
    def head(self, taps: Sequence[Tap], backbone: Backbone, splits: DenseSplits) -> nn.Module:
        """A head with fresh weights."""

    def paper_size(self, patch_size: int) -> int:
        """The paper's input size: 518 px for patches of 14, else 512."""
        return 518 if 518 % patch_size == 0 else 512

    def img_size(self, default: int, *, patch_size: int) -> int:
        """`--dense.crop`, else the paper's size in paper mode and the backbone's own in honest mode."""
        return self.config.crop or (self.paper_size(patch_size) if self.mode == "paper" else default)

    def recipe(self, backbone: Backbone, images: int) -> Recipe:
        """All numbers, for so many training images; a warm-up that is not set keeps its share of the paper's steps."""
        paper = self.paper(backbone)
        recipe = paper if self.mode == "paper" else _honest(paper, images)
        recipe = replace(recipe, **_given(self.config, _NUMBERS), geometry=self.geometry(paper.geometry))
        if self.config.warmup_steps is None:
            recipe = replace(recipe, warmup_steps=round(paper.warmup_steps * recipe.steps / paper.steps))
        return recipe

    def geometry(self, paper: Geometry) -> Geometry:
        """Sizes of images and windows: in honest mode images keep theirs.

        Raises:
            ConfigError: If the backbone is loaded at another size than `--dense.crop`, or windows leave pixels out.
        """
        if self.config.crop not in (None, paper.crop):
            raise ConfigError(
                f"crops of {self.config.crop} px are asked for, and the backbone takes {paper.crop}."
                " Load it with img_size of the same value."
            )
        geometry = paper if self.mode == "paper" else replace(paper, short_side=None)
        geometry = replace(geometry, **_given(self.config, ("stride", "short_side")))
        if geometry.stride > geometry.crop or (geometry.short_side or geometry.crop) < geometry.crop:
            raise ConfigError(
                f"windows of {geometry.crop} px every {geometry.stride} px on images of {geometry.short_side} px do"
                " not work. Give a stride that is not above the crop, and a short_side that is not below it."
            )
        return geometry

    def judge(
        self,
        backbone: Backbone,
        splits: DenseSplits,
        *,
        device: str | torch.device = "cpu",
        workers: int = 0,
        state: Path | None = None,
    ) -> Score:
        """See `DenseProtocol`."""
        device = torch.device(device)
        train = splits.train if self._chosen_on() == "val" else [*splits.train, *splits.val]
        recipe = self.recipe(backbone, len(train))
        target = self.target(splits, recipe)
        folder = StateFolder(state, self._identity(backbone, recipe, train)) if state else None
        with normalising_by(backbone, recipe.statistics):
            model = self._model(backbone, splits, recipe)

            def rows(part: Sequence[Pair], name: str) -> Rows:
                return judge_part(model, part, target, recipe.geometry, device=device, name=name)

            checks = fit(
                model,
                train,
                target,
                recipe,
                seed=self.seed,
                device=device,
                workers=workers,
                choice=self._choice(target, splits, rows),
                state=folder,
                save_every=self.config.save_every,
            )
            found = rows(splits.test, "test images")
        score = target.score(found, self._record(recipe), seed=self.seed)
        if folder:
            folder.remove()
        return replace(score, details=score.details | ({"checks": checks} if checks else {}))

    def _model(self, backbone: Backbone, splits: DenseSplits, recipe: Recipe) -> DenseModel:
        """A fresh head on the backbone."""
        view = View.of(backbone, recipe.layers, norm=recipe.norm)
        with seeded_torch(self.seed, "head"):
            head = self.head(view.taps(backbone), backbone, splits)
        return DenseModel(backbone, head, view, fine_tune=recipe.fine_tune, drop_path=recipe.drop_path)

    def _chosen_on(self) -> str:
        return "val" if self.mode == "honest" else self.paper_choice

    def _choice(self, target: Target, splits: DenseSplits, rows: Any) -> Choice | None:
        part = {"val": splits.val, "test": splits.test}.get(self._chosen_on())
        if part is None:
            return None
        metric, name = METRICS[target.metric], f"{self._chosen_on()} images"
        return Choice(lambda: metric(rows(part, name)[target.metric]), self.config.moments, metric.higher_is_better)

    def _record(self, recipe: Recipe) -> dict[str, Any]:
        record = asdict(recipe) | {"chosen_on": self._chosen_on()}
        return record | ({"departures": list(self.departures)} if self.mode == "paper" and self.departures else {})

    def _identity(self, backbone: Backbone, recipe: Recipe, train: Sequence[Pair]) -> str:
        """A hash of all that the training depends on."""
        names = "\n".join(pair.name for pair in train)
        parts = type(self).__name__, self.mode, self.seed, recipe, self.config.moments, fingerprint(backbone), names
        return sha256_text(repr(parts))


def _given(config: DenseProbeConfig, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(config, name)) is not None}


def _honest(paper: Recipe, images: int) -> Recipe:
    """The paper's recipe for a frozen backbone, shorter, with the model's own statistics."""
    steps = min(paper.steps, max(_FEWEST, math.ceil(_EPOCHS * images / paper.batch_size)))
    return replace(paper, steps=steps, fine_tune=False, statistics=None)
