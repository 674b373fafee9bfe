"""Linear segmentation without steps: logistic regression on pixels of the training images, the penalty chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.geometry import Geometry
from attar.data.pairs import VOID, Pair
from attar.evaluation.dense.model import DenseModel
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.targets import Classes, Rows
from attar.evaluation.dense.view import View
from attar.evaluation.dense.windows import judge_part, read_resized
from attar.evaluation.logistic import LinearHead, fit_logistic
from attar.evaluation.metrics import METRICS
from attar.evaluation.protocols import Score
from attar.evaluation.sliding import windows
from attar.models import Backbone
from attar.models.pixel_heads import PixelClassifier, side_by_side
from attar.utils.progress import track
from attar.utils.seeding import torch_generator

GRID = (1e-4, 1e-2, 1.0)
"""Values of C that are tried; there are many more pixels than weights, so it matters little."""

_OF_AN_IMAGE, _OF_ALL = 256, 200_000  # pixels that the layer is fitted on, at most
_NEVER = -1e30  # bias of a class without an example

Pixels = tuple[Tensor, Tensor]
"""(n, D) tokens interpolated to single pixels, and their (n,) classes."""


def judge_closed_form(
    backbone: Backbone, splits: DenseSplits, view: View, geometry: Geometry, *, seed: int, device: torch.device
) -> Score:
    """Mean IoU of a linear layer on frozen tokens; its penalty is chosen on `val`, which is then learned from too.

    As the layer is linear, it is fitted on tokens interpolated to single pixels: as many of each image, 256 at most.

    Args:
        backbone: On `device`.
        splits: Annotated images.
        view: Which tokens.
        geometry: Sizes of images and windows.
        seed: Names the pixels.
        device: Where images are looked at and layers fitted.
    """
    target = Classes.of(splits)
    fitted = choose_penalty(backbone, splits.train, splits.val, target, view, geometry, seed=seed, device=device)
    layer = one_layer([fitted.refitted(device)], target.num_classes).to(device)
    model = DenseModel(backbone, layer, view)
    found = judge_part(model, splits.test, target, geometry, device=device, name="test images")
    record = {"C": fitted.C, "tried": list(GRID), "chosen_on": "val", "pixels": len(fitted.train[0])}
    record |= {"view": asdict(view), "geometry": asdict(geometry)}
    return target.score(found, record, seed=seed)


@dataclass(frozen=True)
class FittedPixels:
    """A linear layer on pixels of images to learn from, and what it says of those its penalty was chosen on.

    Attributes:
        C: Inverse of the penalty.
        head: Fitted on the former alone.
        val_rows: (n, K, K) confusion matrices of the latter.
        train: Pixels it was fitted on.
        val: Pixels of the others.
    """

    C: float
    head: LinearHead
    val_rows: Tensor
    train: Pixels
    val: Pixels

    def refitted(self, device: str | torch.device = "cpu") -> LinearHead:
        """The layer fitted on the pixels of both, on a device."""
        both = (torch.cat(parts) for parts in zip(self.train, self.val, strict=True))
        return fit_logistic(*both, grid=[self.C], device=device)[0]


def choose_penalty(
    backbone: Backbone,
    train: Sequence[Pair],
    val: Sequence[Pair],
    target: Classes,
    view: View,
    geometry: Geometry,
    *,
    seed: int,
    device: torch.device,
) -> FittedPixels:
    """Layers fitted on `train` with each penalty of the grid; the one with the best mean IoU on `val` is taken.

    Arguments as those of `judge_closed_form`.
    """
    known, other = (draw_pixels(backbone, part, target, view, geometry, seed=seed) for part in (train, val))
    heads = fit_logistic(*known, grid=GRID, device=device)
    model = DenseModel(backbone, one_layer(heads, target.num_classes).to(device), view)
    each = _EachPenalty(target.num_classes, target.first_class)
    rows = list(judge_part(model, val, each, geometry, device=device, name="val images").values())
    best = int(np.argmax([METRICS[target.metric](found) for found in rows]))
    return FittedPixels(GRID[best], heads[best], rows[best], known, other)


def draw_pixels(
    backbone: Backbone, pairs: Sequence[Pair], target: Classes, view: View, geometry: Geometry, *, seed: int
) -> Pixels:
    """Pixels with a class, as many of each image, out of windows that do not overlap."""
    count = max(1, min(_OF_AN_IMAGE, _OF_ALL // max(len(pairs), 1)))
    features, labels = [], []
    for pair in track(pairs, "drawing pixels", total=len(pairs), unit="images"):
        pixels = read_resized(pair.open(), geometry)
        truth = F.interpolate(target.read(pair)[None, None], size=pixels.shape[1:])[0, 0]
        generator = torch_generator(seed, "pixels", pair.name)
        parts = windows(*pixels.shape[1:], crop=geometry.crop, stride=geometry.crop)
        share = -(-count // len(parts))
        for rows, columns in parts:
            labelled = truth[rows, columns]
            candidates = torch.nonzero(labelled.flatten() != VOID).squeeze(1)
            where = candidates[torch.randperm(len(candidates), generator=generator)[:share]]
            tokens = side_by_side(view.tokens(backbone, pixels[None, :, rows, columns]))[0].cpu()
            features.append(tokens_at(tokens, where, size=(labelled.shape[0], labelled.shape[1])))
            labels.append(labelled.flatten()[where].long())
    return torch.cat(features), torch.cat(labels)


def tokens_at(tokens: Tensor, where: Tensor, *, size: tuple[int, int]) -> Tensor:
    """What bilinear interpolation of a map to `size` gives at single pixels, without making the large map.

    Args:
        tokens: (D, h, w).
        where: (n,) int64 pixels, counted row by row in an image of `size`.
        size: (height, width) in pixels.

    Returns:
        (n, D).
    """
    row, column = where // size[1], where % size[1]
    y, x = (row + 0.5) / size[0] * 2 - 1, (column + 0.5) / size[1] * 2 - 1  # pixel centres in [-1, 1]
    grid = torch.stack([x, y], dim=1)[None, None]  # (1, 1, n, 2)
    found = F.grid_sample(tokens[None], grid.float(), mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


class _EachPenalty(Classes):
    """Logits of several heads, one after the other, each judged apart: one pass over the images serves all."""

    def rows(self, found: Tensor, target: Tensor) -> Rows:
        """A confusion matrix for each head, by its number."""
        parts = enumerate(torch.split(found, self.num_classes, dim=1))
        return {str(number): Classes.rows(self, part, target)[self.metric] for number, part in parts}


def one_layer(heads: Sequence[LinearHead], num_classes: int) -> PixelClassifier:
    """All heads as one layer; classes that none has seen in training are never predicted."""
    width = heads[0].weight.shape[1]
    weight, bias = torch.zeros(len(heads), num_classes, width), torch.full((len(heads), num_classes), _NEVER)
    for number, head in enumerate(heads):
        weight[number, : len(head.bias)], bias[number, : len(head.bias)] = head.weight, head.bias
    layer = PixelClassifier(width, len(heads) * num_classes)
    layer.conv.load_state_dict({"weight": weight.view(-1, width, 1, 1), "bias": bias.flatten()})
    return layer
