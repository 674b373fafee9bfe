"""Which view of which image stands at which place of the stream: a pure function of the place, nothing stored.

The stream is endless and has no uneven last batch: step `t` takes the places `t * B` to `(t + 1) * B - 1`, whatever
epoch they fall into. So a resume needs a step number only, and a folder of 50 images fills any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attar.utils.seeding import derive

Places = NDArray[np.int64]
_ROUND_TO = 256  # DeiT's repeated-augmentation sampler keeps whole groups of 256 (spec: proteus §2)
_ROUNDS = 6


@dataclass(frozen=True)
class ViewOrder:
    """Order of (sample, view) pairs with repeated augmentation.

    An epoch has `floor(n / 256) * 256` places where n >= 256, else n. With `repeats` R, an epoch shows R views each of
    1/R of the images; below 256 images R is 1. `view = epoch * R + r`, so no two places show the same view.

    Attributes:
        num_samples: Images in the index.
        seed: Names the order.
        repeats: Views of an image within an epoch.
        cycle: Views that an image has; then the first comes again, the same to the last bit. None: ever new ones.
    """

    num_samples: int
    seed: int
    repeats: int = 1
    cycle: int | None = None

    @property
    def views_per_sample(self) -> int:
        """R in effect: 1 below 256 images."""
        return self.repeats if self.num_samples >= _ROUND_TO else 1

    @property
    def epoch_length(self) -> int:
        """Places in an epoch."""
        if self.num_samples >= _ROUND_TO:
            return self.num_samples // _ROUND_TO * _ROUND_TO
        return self.num_samples

    def num_steps(self, epochs: float, global_batch_size: int) -> int:
        """Steps that show `epochs` epochs, at least one; a last batch that is not full borrows from the next epoch."""
        return max(1, math.ceil(epochs * self.epoch_length / global_batch_size))

    def distinct(self, count: int) -> float:
        """How many different views the first `count` places show, in the mean; without a cycle all differ.

        Where an epoch shows a part of the images, some views of some images are seen late.
        """
        if self.cycle is None:
            return float(count)
        epochs, rest = divmod(count, self.epoch_length)
        repeats = self.views_per_sample
        share = self.epoch_length / repeats / self.num_samples  # of the images, in an epoch
        unseen = np.ones(self.cycle)  # by view: share of images of which it was not shown yet
        for epoch in range(self.cycle):  # as many epochs later the same views are shown
            times = len(range(epoch, epochs, self.cycle))
            unseen[(epoch * repeats + np.arange(repeats)) % self.cycle] *= (1 - share) ** times
        unseen[(epochs * repeats + np.arange(repeats)) % self.cycle] *= 1 - share * rest / self.epoch_length
        return float(self.num_samples * (1 - unseen).sum())

    def at(self, places: Places) -> tuple[Places, Places]:
        """(samples, views) at places of the stream, each (n,) int64."""
        epoch, within = np.divmod(places, self.epoch_length)
        slot, repeat = np.divmod(within, self.views_per_sample)
        samples = np.empty_like(places)
        for number in np.unique(epoch):
            here = epoch == number
            samples[here] = permute(slot[here], self.num_samples, derive(self.seed, "order", int(number)))
        views = epoch * self.views_per_sample + repeat
        return samples, views if self.cycle is None else views % self.cycle


def permute(positions: Places, size: int, key: int) -> Places:
    """Positions of a shuffled list of `size` things, without the list: a Feistel network with cycle walking.

    Args:
        positions: (n,) int64 in [0, size).
        size: Number of things.
        key: Names the permutation.

    Returns:
        (n,) int64: where each position goes. Distinct positions go to distinct places.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half_bits) - 1)
    shift = np.uint64(half_bits)
    round_keys = [np.uint64(derive(key, "round", number)) for number in range(_ROUNDS)]

    def shuffle(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> shift, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << shift) | right

    values = shuffle(positions.astype(np.uint64))
    while (outside := values >= np.uint64(size)).any():  # at most 4 x size values in the domain: a few rounds
        values[outside] = shuffle(values[outside])
    return values.astype(np.int64)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): each input bit changes half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
