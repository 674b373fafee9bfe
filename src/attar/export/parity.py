"""From image file to vector twice, by attar and by what was exported: do both say the same?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attar.errors import ExportError

BATCHES = (1, 2, 7)
"""Numbers of images that an exported file is given at a time."""

Outputs = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class Parity:
    """How far two ways from the same images lie apart, in the output that does so most for its size.

    Attributes:
        images: Number compared.
        apart: Largest absolute difference of that output; not finite where any output holds what is no number.
        largest: Largest absolute value of it when right.
        cosine: Smallest cosine of an image's first output to the right one.
    """

    images: int
    apart: float
    largest: float
    cosine: float

    @property
    def told(self) -> str:
        """In one line."""
        return (
            f"{self.images} images in batches of {', '.join(map(str, BATCHES))}: at most {self.apart:.1e} apart"
            f" (values up to {self.largest:.3g}), cosine at least {self.cosine:.6f}"
        )

    def check_finite(self, *, what: str) -> None:
        """Refuse a file that gives values that are no numbers.

        Raises:
            ExportError: If it does.
        """
        if not math.isfinite(self.apart):
            raise ExportError(
                f"{what} gives values that are no finite numbers, on some of {self.images} images. Nothing was written."
                " Try --images of the kind that the model learned from; if those fail too, export another student."
            )

    def check(self, tolerance: float, *, what: str) -> None:
        """Refuse a file that says something else.

        Args:
            tolerance: Largest difference that passes, in units of the largest value.
            what: Name of the file.

        Raises:
            ExportError: If it does not pass.
        """
        self.check_finite(what=what)
        allowed = tolerance * self.largest
        if not self.apart <= allowed:
            raise ExportError(
                f"{what} differs from the model by {self.apart:.2e} on {self.images} images, and {allowed:.2e} is"
                f" allowed ({tolerance:g} of the largest value, {self.largest:.3g}). Nothing was written. Try another"
                " torch or onnxruntime, or --tolerance if so much is right for your use."
            )


def compare(run: Callable[[NDArray[Any]], Outputs], images: Sequence[NDArray[Any]], right: Outputs) -> Parity:
    """Run images in batches of `BATCHES` and compare with what is right.

    Args:
        run: From images as the file takes them to its outputs.
        images: As the file takes them, one array each; as many as the batches hold.
        right: Each output for all of them.
    """
    starts = np.cumsum([0, *BATCHES])
    assert len(images) == starts[-1], f"{len(images)} images for batches of {BATCHES}"
    parts = [run(np.stack(images[a:b])) for a, b in pairwise(starts)]
    found = [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]
    pairs = list(zip(found, right, strict=True))
    if wrong := next((pair for pair in pairs if pair[0].shape != pair[1].shape), None):
        raise ExportError(f"an output has the shape {wrong[0].shape} where the model's has {wrong[1].shape}.")
    apart, largest = max(((_most(a - b), _most(b)) for a, b in pairs), key=_share)
    return Parity(len(images), apart, largest, _cosine(*pairs[0]))


def _most(values: NDArray[np.float32]) -> float:
    """Largest absolute value; NaN where any is."""
    return float(np.abs(values).max())


def _share(lengths: tuple[float, float]) -> tuple[bool, float]:
    """What is no number is worse than anything; else the difference in units of the largest value."""
    apart, largest = lengths
    return not math.isfinite(apart), apart / max(largest, 1e-30) if math.isfinite(apart) else 0.0


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The smallest over images."""
    rows = [x.reshape(len(x), -1).astype(np.float64) for x in (a, b)]
    lengths = np.linalg.norm(rows[0], axis=1) * np.linalg.norm(rows[1], axis=1)
    return float(((rows[0] * rows[1]).sum(1) / np.maximum(lengths, 1e-30)).min())
