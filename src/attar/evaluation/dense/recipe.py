"""How a head on a backbone is trained and judged: the numbers of a protocol, filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from attar.data.geometry import Geometry
from attar.types import Statistics

Schedule = Literal["poly", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """Numbers of a protocol.

    Attributes:
        geometry: Sizes of images, crops and windows.
        steps: Optimiser steps.
        batch_size: Crops in one.
        lr: Highest learning rate of the head (AdamW).
        weight_decay: Of everything with two dimensions or more.
        warmup_steps: The rate grows linearly for so many steps.
        schedule: Then it falls to 0, by a straight line (`poly`, power 1) or by half a cosine.
        clip_norm: Greatest norm of the gradient.
        layers: Blocks that the head looks at, from 0; None for the tokens after the final norm.
        norm: Apply the final norm to each block.
        fine_tune: Train a copy of the backbone too.
        backbone_lr: Factor of its rate.
        layer_decay: Factor of the rate from each block to the one below.
        drop_path: Share of residual branches dropped in the last block while it is trained; rises from 0.
        scales: Least and greatest size of a training image, in times of its own.
        statistics: Normalise by these in place of the model's own.
    """

    geometry: Geometry
    steps: int
    lr: float
    weight_decay: float
    warmup_steps: int
    batch_size: int = 16
    schedule: Schedule = "poly"
    clip_norm: float | None = None
    layers: tuple[int, ...] | None = None
    norm: bool = False
    fine_tune: bool = False
    backbone_lr: float = 1.0
    layer_decay: float | None = None
    drop_path: float = 0.0
    scales: tuple[float, float] = (0.5, 2.0)
    statistics: Statistics | None = None

    def rate(self, step: int) -> float:
        """Share of the highest learning rate at a step, counted from 0.

        Example:
            >>> recipe = Recipe(Geometry(224, 149), steps=100, lr=1e-3, weight_decay=0.0, warmup_steps=10)
            >>> [round(recipe.rate(step), 2) for step in (0, 10, 55)]
            [0.0, 1.0, 0.5]
        """
        if step < self.warmup_steps:
            return max(step / self.warmup_steps, 1e-6)
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return 1 - done if self.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
