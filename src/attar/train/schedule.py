"""Learning rate over a run: linear warm-up, then a cosine that is not shifted by it (timm's, spec proteus §2, §6.6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attar.config import OptimConfig


def cosine_lr(t: float, *, total: float, warmup: float, base: float, warmup_lr: float, floor: float) -> float:
    """Learning rate at time `t` of `total`, both in the same unit (epochs or steps).

    Linear from `warmup_lr` towards `base` while t < warmup; then floor + (base - floor) (1 + cos(pi t / total)) / 2.
    As the cosine counts from 0 and not from the end of the warm-up, `base` itself is never reached.
    """
    if t < warmup:
        return warmup_lr + t * (base - warmup_lr) / warmup
    return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / total))


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step.

    Attributes:
        base: Peak learning rate.
        total_steps: Length of the run.
        steps_per_epoch: Steps that make an epoch, perhaps a fraction.
        config: Warm-up, floor and whether the rate moves by step or, as released, by finished epoch.
    """

    base: float
    total_steps: int
    steps_per_epoch: float
    config: OptimConfig

    def at(self, step: int) -> float:
        """Learning rate of step `step`, from 0.

        `paper` holds the rate for an epoch and looks it up with the number of the last finished one, so that epochs
        0 and 1 both run at the warm-up's first value (spec §2, off by one).
        """
        floor, warmup_lr = min(self.config.min_lr, self.base), min(self.config.warmup_lr, self.base)
        if self.config.schedule == "paper":
            epoch = int(step / self.steps_per_epoch)
            t, total, warmup = (
                float(max(epoch - 1, 0)),
                self.total_steps / self.steps_per_epoch,
                self.config.warmup_epochs,
            )
        else:
            t, total = float(step), float(self.total_steps)
            warmup = min(self.config.warmup_epochs * self.steps_per_epoch, 0.1 * total)
        return cosine_lr(t, total=total, warmup=warmup, base=self.base, warmup_lr=warmup_lr, floor=floor)


def base_lr(config: OptimConfig, batch_size: int) -> float:
    """The given learning rate, or `lr_per_512 * batch_size / 512`."""
    return config.lr if config.lr is not None else config.lr_per_512 * batch_size / 512
