"""Linear semantic segmentation on frozen patch tokens, judged by mean IoU (after spec evaluation §1.5, small)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.data.decode import open_image
from attar.evaluation.confusion import confusion_matrix, mean_iou
from attar.evaluation.dense.closed_form import GRID, tokens_at
from attar.evaluation.intervals import bootstrap_interval
from attar.evaluation.logistic import LinearHead, fit_logistic
from attar.evaluation.metrics import METRICS
from attar.evaluation.pairs import Annotated, open_annotated, read_annotation
from attar.types import FrozenBackbone
from attar.utils.progress import track
from attar.utils.seeding import torch_generator

__all__ = [
    "GRID",
    "Annotated",
    "LinearSegmentation",
    "dense_tokens",
    "open_annotated",
    "read_annotation",
    "read_pixels",
    "tokens_at",
]

_PIXELS = 256  # of each training image that the layer is fitted on
_TILES = 64  # tiles in one forward pass


def dense_tokens(backbone: FrozenBackbone, pixels: Tensor) -> Tensor:
    """Patch tokens of a large image as one map, tile by tile.

    The image is cut into tiles of the backbone's input size, which do not overlap and see nothing of each other.

    Args:
        backbone: Frozen model with input size S and a patch grid (h, w).
        pixels: (3, R * S, C * S) uint8 or float in [0, 1].

    Returns:
        (D, R * h, C * w) float32.
    """
    size = backbone.img_size
    rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
    tiles = pixels.view(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).flatten(0, 1)  # (R * C, 3, S, S)
    tokens = [backbone.tokens(part) for part in torch.split(tiles, _TILES)]
    h, w = tokens[0].grid
    patch = torch.cat([part.patch for part in tokens]).cpu()  # (R * C, h * w, D)
    return patch.view(rows, columns, h, w, -1).permute(4, 0, 2, 1, 3).reshape(-1, rows * h, columns * w)


class LinearSegmentation:
    """One linear layer from patch tokens to classes, fitted on a training part and judged on a test part.

    Images are stretched to the nearest multiple of the backbone's input size. Logits are brought to the size of the
    annotation bilinearly; as the layer is linear, it is fitted on tokens interpolated to single pixels, some of each
    training image. The penalty is chosen by the mean IoU on the validation part.

    Args:
        train: Images to fit on.
        val: Images to choose the penalty by.
        test: Images to report.
        num_classes: Classes are 0 to `num_classes` - 1; anything above is void and ignored.
        seed: Names the pixels.
    """

    def __init__(
        self,
        train: Sequence[Annotated],
        val: Sequence[Annotated],
        test: Sequence[Annotated],
        *,
        num_classes: int,
        seed: int,
    ) -> None:
        self.train, self.val, self.test = train, val, test
        self.num_classes, self.seed = num_classes, seed

    def run(self, backbone: FrozenBackbone) -> Iterator[tuple[str, float]]:
        """Yield `segmentation_miou`, its 95 % interval `…_low` and `…_high`, the chosen `…_C`, and `…_images`."""
        heads = fit_logistic(*self._training_pixels(backbone), grid=GRID)
        chosen = heads[int(np.argmax([mean_iou(found.sum(0)) for found in self._judge(backbone, heads, self.val)]))]
        (confusions,) = self._judge(backbone, [chosen], self.test)
        low, high = bootstrap_interval(METRICS["miou"], confusions, seed=self.seed)
        yield "segmentation_miou", mean_iou(confusions.sum(0))
        yield "segmentation_low", low
        yield "segmentation_high", high
        yield "segmentation_C", chosen.C
        yield "segmentation_images", len(self.test)

    def _training_pixels(self, backbone: FrozenBackbone) -> tuple[Tensor, Tensor]:
        """((n, D) interpolated tokens, (n,) classes) of pixels drawn from each training image, void left out."""
        features, labels = [], []
        for number, pair in enumerate(track(self.train, "training pixels", total=len(self.train), unit="images")):
            target = read_annotation(pair.annotation)
            candidates = torch.nonzero(target.flatten() < self.num_classes).squeeze(1)
            order = torch.randperm(len(candidates), generator=torch_generator(self.seed, "pixels", number))
            where = candidates[order[:_PIXELS]]
            tokens = dense_tokens(backbone, read_pixels(pair.image, multiple_of=backbone.img_size))
            features.append(tokens_at(tokens, where, size=(target.shape[0], target.shape[1])))
            labels.append(target.flatten()[where].long())
        return torch.cat(features), torch.cat(labels)

    def _judge(self, backbone: FrozenBackbone, heads: Sequence[LinearHead], part: Sequence[Annotated]) -> list[Tensor]:
        """For each head the (images, K, K) confusion matrices of a part."""
        found: list[list[Tensor]] = [[] for _ in heads]
        for pair in track(part, "segmenting", total=len(part), unit="images"):
            tokens = dense_tokens(backbone, read_pixels(pair.image, multiple_of=backbone.img_size))
            target = read_annotation(pair.annotation)
            for head, confusions in zip(heads, found, strict=True):
                logits = head.logits(tokens.permute(1, 2, 0)).permute(2, 0, 1)  # (K, h, w)
                predicted = F.interpolate(logits[None], size=target.shape, mode="bilinear")[0].argmax(0)
                confusions.append(confusion_matrix(predicted, target, num_classes=self.num_classes))
        return [torch.stack(confusions) for confusions in found]


def read_pixels(path: Path, *, multiple_of: int) -> Tensor:
    """(3, H, W) uint8 image, stretched so that both sides are the nearest multiples of a number."""
    image = open_image(path.read_bytes(), name=str(path))
    width, height = (max(1, round(side / multiple_of)) * multiple_of for side in image.size)
    return torch.from_numpy(np.array(image.resized(None, (width, height)))).permute(2, 0, 1).contiguous()
