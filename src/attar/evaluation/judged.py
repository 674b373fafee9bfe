"""The model that a protocol judges, beyond its features: its text tower, and what took long to make for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.errors import ConfigError
from attar.evaluation.outputs import add_weights
from attar.evaluation.zero_shot import text_classifier
from attar.models import Backbone, TextTower
from attar.utils.io import sha256_text, storage_errors


@dataclass(frozen=True)
class Judged:
    """What a protocol may ask of a model besides features.

    Attributes:
        name: For people.
        folder: Where protocols keep what took long to make, for these weights and this input alone.
        device: Where heads may be trained.
        load_text: Makes its text tower, on the CPU; None where it has none.
        backbone: The model, on the device, for protocols that no stored features serve.
        load: Makes the model at another input size, on the CPU.
    """

    name: str
    folder: Path
    device: str | torch.device = "cpu"
    load_text: Callable[[], TextTower] | None = None
    backbone: Backbone | None = None
    load: Callable[[int], Backbone] | None = None

    def backbone_at(self, wanted: Callable[[Backbone], int]) -> Backbone:
        """The model at the input size that a protocol wants of it, loaded anew where that is another than its own."""
        assert self.backbone is not None, "a protocol on pixels was given features alone"
        size = wanted(self.backbone)
        if size == self.backbone.img_size:
            return self.backbone
        assert self.load is not None, "a model that cannot be loaded anew"
        return self.load(size).to(self.device).eval()

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower."""
        return self.load_text is not None

    @cached_property
    def text(self) -> TextTower:
        """The text tower, on the device.

        Raises:
            ConfigError: If there is none.
        """
        if self.load_text is None:
            raise ConfigError(f"{self.name} has no text tower. Judge a model with one, such as open_clip:NAME.")
        return self.load_text().to(self.device)

    @cached_property
    def text_fingerprint(self) -> str | None:
        """Hex SHA-256 of the text tower's reference and weights; None where there is none."""
        if self.load_text is None:
            return None
        digest = hashlib.sha256(self.text.source.name.encode())
        add_weights(digest, self.text.model)
        return digest.hexdigest()

    def classifier(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """(K, E) `text_classifier` of the text tower; from its file where it was made before."""
        about = sha256_text(json.dumps([self.text_fingerprint, list(class_names), list(templates)]))[:32]
        file = self.folder / f"classifier-{about}.safetensors"
        if file.is_file():
            return load_file(file)["classifier"]
        found = text_classifier(self.text.encode, class_names, templates)
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            save_file({"classifier": found}, part)
            part.replace(file)
        return found
