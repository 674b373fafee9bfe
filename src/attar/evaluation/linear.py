"""Linear probe: logistic regression on frozen, standardised features (spec evaluation §1.3, on a short grid)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attar.data.labelled import Labelled
from attar.evaluation.embedding import embed_labelled
from attar.types import FrozenBackbone
from attar.utils.seeding import numpy_generator

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C = 1 / lambda that are tried, from the strongest penalty to the weakest."""

_HELD_OUT = 5  # one image in so many chooses C
_MAX_ITER = 500
_TOLERANCE = 1e-4  # of the gradient's largest entry, as in scikit-learn
_NEVER = -1e30  # bias of a class without an example
_CONSTANT = 1e-8  # a feature that varies less is left unscaled instead of divided by nothing


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of raw features; the standardisation it was fitted with is part of its weights.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        C: Inverse of the penalty it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    C: float

    def logits(self, features: Tensor) -> Tensor:
        """(..., K) for features (..., D)."""
        return features @ self.weight.T + self.bias

    def predict(self, features: Tensor) -> Tensor:
        """(n,) class of each of (n, D) features."""
        return self.logits(features).argmax(-1)


def fit_logistic(features: Tensor, labels: Tensor, *, grid: Sequence[float] = GRID) -> list[LinearHead]:
    """Multinomial logistic regression with an L2 penalty, once for each C of the grid, by L-BFGS.

    Minimises C * sum of cross-entropies + |W|^2 / 2 on features brought to mean 0 and standard deviation 1; the bias
    is free. The solver sees features whitened by (H + 1 / (n C))^(-1/2), with H half their covariance, a bound of the
    loss's curvature (spec evaluation §4.2): the minimum is the same, and collinear features need fewer steps.

    Args:
        features: (n, D).
        labels: (n,) int64; a class without an example is never predicted.
        grid: Values of C.

    Returns:
        One head for each C, for raw features. K is the largest label + 1.
    """
    x = features.float()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std < _CONSTANT, 1.0, std)
    x = (x - mean) / std
    curvature, axes = torch.linalg.eigh(x.T @ x / (2 * len(x)))
    x = x @ axes
    present, y = torch.unique(labels, return_inverse=True)
    heads = []
    for C in grid:  # noqa: N806  the field's name
        penalty = 1 / (C * len(x))
        scale = (curvature.clamp(min=0) + penalty).rsqrt()
        v, b = _minimise(x * scale, y, len(present), penalty * scale.square())
        weight, bias = torch.zeros(int(present[-1]) + 1, x.shape[1]), torch.full((int(present[-1]) + 1,), -torch.inf)
        weight[present] = (v * scale) @ axes.T / std
        bias[present] = b - weight[present] @ mean
        heads.append(LinearHead(weight, bias.nan_to_num(neginf=_NEVER), C))
    return heads


def _minimise(x: Tensor, y: Tensor, num_classes: int, penalties: Tensor) -> tuple[Tensor, Tensor]:
    """(K, D) weights and (K,) biases of least mean cross-entropy + sum over channels of penalty * weight^2 / 2."""
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITER, tolerance_grad=_TOLERANCE, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + (penalties * weight.square()).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def choose_logistic(features: Tensor, labels: Tensor, *, seed: int) -> LinearHead:
    """A logistic regression whose C is chosen by accuracy on a fifth of the rows, then fitted on all of them.

    Args:
        features: (n, D).
        labels: (n,) int64.
        seed: Names the fifth.
    """
    is_held_out = torch.from_numpy(_one_in(len(labels), seed))
    heads = fit_logistic(features[~is_held_out], labels[~is_held_out])
    hits = [(head.predict(features[is_held_out]) == labels[is_held_out]).sum().item() for head in heads]
    best = heads[int(np.argmax(hits))].C  # the first of equals: the stronger penalty
    return fit_logistic(features, labels, grid=[best])[0]


def _one_in(count: int, seed: int) -> NDArray[np.bool_]:
    """True for a fifth of the rows, chosen by seed."""
    chosen = np.zeros(count, dtype=bool)
    chosen[numpy_generator(seed, "linear", "held out").permutation(count)[: count // _HELD_OUT]] = True
    return chosen


def mean_per_class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes present of the share of each that is right."""
    hits = (predicted == labels).double()
    return float(np.mean([hits[labels == label].mean().item() for label in torch.unique(labels)]))


class LinearProbe:
    """Logistic regression on the class-token features of a training part, judged once on a test part.

    Args:
        train: Images to fit on; a fifth of them, chosen by seed, chooses the penalty first.
        test: Images to report.
        seed: Names that fifth.
        crop_pct: Share of the resized image that the centre crop keeps.
        workers: Loader processes.
    """

    def __init__(self, train: Labelled, test: Labelled, *, seed: int, crop_pct: float, workers: int) -> None:
        self.train, self.test, self.seed = train, test, seed
        self.crop_pct, self.workers = crop_pct, workers

    def run(self, backbone: FrozenBackbone) -> Iterator[tuple[str, float]]:
        """Yield `linear_top1`, `linear_mean_per_class`, the chosen `linear_C`, and `linear_images` tested."""
        train, (features, labels) = (
            embed_labelled(backbone, part, crop_pct=self.crop_pct, workers=self.workers, name=f"{name} images")
            for name, part in (("training", self.train), ("test", self.test))
        )
        head = choose_logistic(*train, seed=self.seed)
        predicted = head.predict(features)
        yield "linear_top1", (predicted == labels).double().mean().item()
        yield "linear_mean_per_class", mean_per_class_accuracy(predicted, labels)
        yield "linear_C", head.C
        yield "linear_images", len(labels)
