"""Segmentation: a class for each pixel, as `attar evaluate` reads annotations and judges them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attar.config import TransferConfig
from attar.config.transfer import AdaptConfig, FinetuneConfig, HeadKind
from attar.data.crops import Crops, CropStream, LabelledCrops
from attar.data.draws import share_of_images
from attar.data.geometry import Geometry
from attar.data.pairs import VOID, Pair, PairSource
from attar.data.sources import Source
from attar.errors import DataError, ShapeError
from attar.evaluation.confusion import mean_iou
from attar.evaluation.dense.closed_form import choose_penalty
from attar.evaluation.dense.splits import hold_out, open_dense_parts
from attar.evaluation.dense.targets import Classes
from attar.evaluation.dense.view import View
from attar.evaluation.dense.windows import judge_pairs
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.metrics import Metric
from attar.evaluation.predictions import geometry_of, pixel_logits
from attar.evaluation.sliding import windows
from attar.methods import TASKS
from attar.models import Backbone, TaskModel
from attar.recipes.tasks.base import FittedHead, OpenedTask, Rows

_NEVER = -1e4  # bias of a class without an example
_LOOKED_AT = 64  # annotations whose bytes are in a hash


class Segmentation(OpenedTask):
    """Linear and DeepLabV3 heads, mean IoU. Rows are confusion matrices ((n, K, K),)."""

    losses = TASKS["segmentation"]
    tokens = "patch"
    metrics = ("miou", "class_accuracy")
    figure = "a mean IoU of "
    usage: ClassVar[str] = (
        "`attar predict FOLDER --data DIR --out DIR` writes an image of class numbers for each image; `task.json` names"
        " the classes. The backbone alone:\n\n"
        "```python\nimport timm\n"
        'backbone = timm.create_model("local-dir:path/to/this/folder", pretrained=True).eval()\n'
        "features = backbone.forward_features(images)  # images normalised with mean and std of config.json\n```\n\n"
        "and with its head `attar.export.read_task_model(FOLDER).logits(images)`, images in [0, 1]."
    )

    def __init__(
        self, parts: dict[str, Sequence[Pair]], class_names: tuple[str, ...], origin: str, config: TransferConfig
    ) -> None:
        self.parts, self.class_names, self.origin, self.config = parts, class_names, origin, config
        self.counts = {name: len(pairs) for name, pairs in parts.items()}
        self.hashes = {name: _hash(parts[name], class_names) for name in ("train", "val")}
        self.target = Classes(len(class_names))

    @classmethod
    def open(cls, config: TransferConfig, *, workers: int) -> Segmentation:
        """Open `images/SPLIT` with `annotations/SPLIT`, or scenes of the playground, and draw `labels_share` of them.

        Without images to choose by, a fifth of those to learn from is set apart, after the draw: what is chosen by
        costs labels too.
        """
        found = open_dense_parts(config.labelled)
        if not found.class_names:
            raise DataError(f"the annotations of {config.labelled} hold depth; segmentation needs classes in 8 bits.")
        train, val, origin = found.train, found.val, found.origin
        if config.labels_share is not None:
            rows = share_of_images(len(train), config.labels_share, seed=config.seed)
            train = [train[row] for row in rows]
            origin += f"; {len(train):,} images of train by seed {config.seed}"
        if not val:
            train, val = hold_out(train, seed=config.seed)
            origin += f"; val: a fifth of train by seed {config.seed}"
        parts = {"train": train, "val": val} | ({"test": found.test} if found.test else {})
        return cls(parts, found.class_names, origin, config)

    def few(self, count: int) -> Segmentation:
        """The first ones."""
        parts = {name: pairs[:count] for name, pairs in self.parts.items()}
        return Segmentation(parts, self.class_names, self.origin, self.config)

    def new_model(self, backbone: Backbone, *, head: HeadKind) -> TaskModel:
        """With the head that is asked for.

        Raises:
            ShapeError: If images would be smaller than the model's input.
        """
        dense, size = self.config.dense, backbone.img_size
        if (dense.short_side or size) < size or (dense.stride or 1) > size:
            raise ShapeError(
                f"windows of {size} px every {dense.stride} px on images of {dense.short_side} px do not work. Give a"
                f" dense.short_side of {size} at least and a dense.stride of {size} at most."
            )
        return TaskModel.segmenter(
            backbone, self.class_names, head=head, short_side=dense.short_side, stride=dense.stride
        )

    def fit_head(self, model: TaskModel, *, refit: bool) -> FittedHead:
        """Logistic regression on tokens interpolated to single pixels, as the protocol `segmentation` has it."""
        geometry, backbone = geometry_of(model), model.backbone
        train, val = self.parts["train"], self.parts["val"]
        fitted = choose_penalty(
            *(backbone, train, val, self.target, View(), geometry), seed=self.config.seed, device=backbone.mean.device
        )
        chosen = fitted.refitted() if refit else fitted.head
        with torch.no_grad():
            head: Any = model.head
            conv = head.layers.conv
            conv.weight.zero_()[: len(chosen.weight)] = chosen.weight[..., None, None]
            conv.bias.fill_(_NEVER)[: len(chosen.bias)] = chosen.bias.clamp_min(_NEVER)
        passes = sum(_windows_in(pair, geometry) for pair in (*train, *val))
        return FittedHead(1 / fitted.C, (fitted.val_rows,), passes)

    def stream(self, backbone: Backbone, section: AdaptConfig | FinetuneConfig) -> LabelledCrops:
        """Crops that are scaled, cut, mirrored and distorted, with the class of each pixel."""
        size, dense = backbone.img_size, self.config.dense
        geometry = Geometry(size, dense.stride or size, short_side=dense.short_side)
        crops = Crops(geometry, dense.scales, VOID, self.config.seed)
        return LabelledCrops(CropStream(self.parts["train"], self.target.read, crops))

    def predict(self, model: TaskModel, part: str) -> Rows:
        """Confusion matrices of whole images, seen by sliding windows."""
        see, device = partial(pixel_logits, model), model.backbone.mean.device
        pairs, geometry = self.parts[part], geometry_of(model)
        found = judge_pairs(see, pairs, self.target, geometry, device=device, name=f"{part} images")
        return (found[self.target.metric],)

    def source_of(self, part: str) -> Source:
        """See `OpenedTask`."""
        return PairSource(self.parts[part])

    def details(self, rows: Rows) -> dict[str, Any]:
        """IoU by class and accuracies."""
        found = self.target.details(rows[0])
        return found | {"iou": dict(zip(self.class_names, found["iou"], strict=True))}

    def protocol(self) -> dict[str, Any]:
        """Share of the labels and sizes."""
        return {"labels_share": self.config.labels_share, "dense": self.config.dense.model_dump(mode="json")}

    def gain(self, ours: Rows, theirs: Rows, *, seed: int) -> tuple[float, tuple[float, float]]:
        """Of mean IoU, over the same images drawn again."""
        both = torch.stack([ours[0], theirs[0]], dim=1)  # (n, 2, K, K)
        return _GAIN(both), bootstrap_interval(_GAIN, both, seed=seed)


def _difference(total: Tensor) -> float:
    ours, theirs = mean_iou(total[0]), mean_iou(total[1])
    return ours - theirs


_GAIN = Metric("gain", lambda both: (both,), _difference, "sum")


def _hash(pairs: Sequence[Pair], class_names: Sequence[str]) -> str:
    """Hex SHA-256 that tells these images from others: of their names, and of the annotations of a few of them."""
    digest = hashlib.sha256("\n".join((*class_names, *(pair.name for pair in pairs))).encode())
    for row in np.unique(np.linspace(0, len(pairs) - 1, _LOOKED_AT).round().astype(int)):
        digest.update(pairs[row].classes().numpy().tobytes())
    return digest.hexdigest()


def _windows_in(pair: Pair, geometry: Geometry) -> int:
    """Windows that do not overlap, as pixels are drawn from."""
    height, width = geometry.base_size(pair.open().size)
    return len(windows(height, width, crop=geometry.crop, stride=geometry.crop))
