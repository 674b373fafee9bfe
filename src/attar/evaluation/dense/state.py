"""A half-trained head on disk, so that the same command goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.evaluation.dense.model import DenseModel
from attar.utils.io import new_folder, read_json, sha256_file, write_json


@dataclass
class Progress:
    """How far the training of a head is.

    Attributes:
        step: Steps done.
        checks: What was found when the head was judged: step and value.
        best: Weights of the best of them.
    """

    step: int = 0
    checks: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


class StateFolder:
    """A folder with `tensors.safetensors` and `state.json`, replaced as a whole; one that is damaged counts as none.

    Args:
        path: Where it is.
        identity: What the training depends on; a state of any other is passed over.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, model: DenseModel, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Write the state in place of the one before.

        Raises:
            RunDirectoryError: If the folder cannot be written; what was there stays.
        """
        parts = {"model": model.state_dict(), "optimizer": _flat(optimizer), "best": progress.best}
        tensors = {f"{part}/{name}": x.contiguous() for part, named in parts.items() for name, x in named.items()}
        with new_folder(self.path) as folder:
            save_file(tensors, folder / "tensors.safetensors")
            state = {"identity": self.identity, "step": progress.step, "checks": progress.checks}
            write_json(folder / "state.json", state | {"sha256": sha256_file(folder / "tensors.safetensors")})

    def load(self, model: DenseModel, optimizer: torch.optim.Optimizer) -> Progress:
        """Bring model and optimiser to the state, where there is one of this training."""
        found, tensors = self._read()
        if not found:
            return Progress()
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition("/")
            parts[part][own] = tensor
        model.load_state_dict(parts["model"])
        _fill(optimizer, parts["optimizer"])
        return Progress(found["step"], found["checks"], parts["best"])

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is written there if it is whole and of this training, else nothing."""
        file = self.path / "tensors.safetensors"
        with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
            found = read_json(self.path / "state.json")
            if found["identity"] == self.identity and found["sha256"] == sha256_file(file):
                return found, load_file(file)
        return {}, {}

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.path, ignore_errors=True)


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}/{name}": tensor for number, own in state.items() for name, tensor in own.items()}


def _fill(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
