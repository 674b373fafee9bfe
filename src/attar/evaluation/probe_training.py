"""How the heads of a linear probe are trained: order of the images, learning rate by step, saving and going on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.data.base import Rows
from attar.errors import CheckpointError, Interrupted
from attar.evaluation.probe_features import Layout, ProbeFeatures
from attar.evaluation.probe_heads import ProbeHeads
from attar.utils.io import new_folder, read_json, write_json
from attar.utils.progress import track
from attar.utils.seeding import numpy_generator

_PER_IMAGES = 256  # a learning rate is meant for a batch of so many
_SAVE_EVERY = 1000  # steps

Heads = Mapping[Layout, ProbeHeads]


@dataclass(frozen=True)
class ProbeSchedule:
    """Which images are in which step; the last images of an epoch that fill no batch are left out.

    Attributes:
        images: n.
        batch_size: Images of a step, at most n.
        epochs: Passes through the images.
        seed: Names the order.
    """

    images: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps(self) -> int:
        """Of all epochs."""
        return self.epochs * (self.images // self.batch_size)

    def lr(self, lr_per_256: float) -> float:
        """The learning rate of the first step."""
        return lr_per_256 * self.batch_size / _PER_IMAGES

    def factor(self, step: int) -> float:
        """Share of the learning rate at a step: a cosine from 1 towards 0, without warm-up."""
        return (1 + math.cos(math.pi * step / self.steps)) / 2

    def batches(self, start: int = 0) -> Iterator[tuple[int, Rows]]:
        """(epoch, rows) of each step from `start` on; rows ascend, which disks like and a mean does not mind."""
        per_epoch = self.images // self.batch_size
        for epoch in range(start // per_epoch, self.epochs):
            order = numpy_generator(self.seed, "linear probe", "order", epoch).permutation(self.images)
            for step in range(max(0, start - epoch * per_epoch), per_epoch):
                yield epoch, np.sort(order[step * self.batch_size : (step + 1) * self.batch_size])


def train_heads(heads: Heads, features: ProbeFeatures, schedule: ProbeSchedule, *, state: Path | None = None) -> None:
    """Train all heads in one pass through the batches, each of which is read once.

    Args:
        heads: By what they read; their weights change.
        features: Images to fit on; epoch e reads view e modulo V.
        schedule: Which images are in which step, and how the learning rate falls.
        state: Folder in which all is saved now and then and when a signal stops the run; from there it goes on.

    Raises:
        CheckpointError: If `state` belongs to another probe.
    """
    saved = _State(state, heads, _identity(heads, features, schedule))
    done = saved.load()
    batches = track(schedule.batches(done), "training linear probe", total=schedule.steps - done, unit="steps")
    try:
        for epoch, rows in batches:
            batch = features.rows(rows, view=epoch % features.views)
            _step(heads, features, batch, features.labels[rows], factor=schedule.factor(done))
            done += 1
            if done % _SAVE_EVERY == 0:
                saved.save(done)
    except Interrupted:
        saved.save(done)
        raise
    saved.save(done)


def _step(heads: Heads, features: ProbeFeatures, batch: Tensor, labels: Tensor, *, factor: float) -> None:
    like = next(iter(heads.values())).weight
    batch, labels = batch.to(like.device).to(like.dtype), labels.to(like.device)  # half the bytes travel, if halves
    for layout, some in heads.items():
        some.step(batch[:, features.columns(layout)], labels, factor=factor)


def _identity(heads: Heads, features: ProbeFeatures, schedule: ProbeSchedule) -> dict[str, Any]:
    """What must be the same for a saved state to be gone on from."""
    return {
        **asdict(schedule),
        "heads": {str(layout): list(some.weight.shape) for layout, some in heads.items()},
        "learning_rates": [some.learning_rates.tolist() for some in heads.values()],
        "views": features.views,
        "labels": hashlib.sha256(features.labels.numpy().tobytes()).hexdigest(),
    }


@dataclass(frozen=True)
class _State:
    """A folder with all that a step changes and the number of steps done; nothing happens without a folder."""

    folder: Path | None
    heads: Heads
    identity: dict[str, Any]

    def save(self, done: int) -> None:
        if self.folder is None:
            return
        tensors = {f"{layout}/{k}": t for layout, some in self.heads.items() for k, t in some.tensors().items()}
        with new_folder(self.folder) as temporary:
            save_file(tensors, temporary / "tensors.safetensors")
            write_json(temporary / "state.json", {"done": done, **self.identity})

    def load(self) -> int:
        """Steps that were done; the heads are as they were then."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        found = read_json(self.folder / "state.json")
        done = int(found.pop("done"))
        odd = sorted(name for name, value in self.identity.items() if found.get(name) != value)
        if odd:
            raise CheckpointError(
                f"{self.folder} holds another linear probe: {', '.join(odd)} differ."
                " Give this one a folder of its own, or remove that one."
            )
        tensors = load_file(self.folder / "tensors.safetensors")
        for layout, some in self.heads.items():
            some.load({name: tensors[f"{layout}/{name}"] for name in some.tensors()})
        return done
