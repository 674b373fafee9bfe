"""mCE on features: AlexNet's errors, all 75 splits, and an interval that draws photos with all their versions."""

from __future__ import annotations

import pytest
import torch

from attar.errors import DataError
from attar.evaluation.corruptions import score_corruptions
from attar.evaluation.datasets import CORRUPTIONS
from attar.evaluation.robustness import alexnet_errors, mean_corruption_error
from attar.evaluation.store import Features

PHOTOS, CLASSES = 40, 5


def features(split: int, missing: int | None = None) -> Features:
    """Logits as features; the more right, the lower the number of the split."""
    generator = torch.Generator().manual_seed(split)
    labels = torch.arange(PHOTOS) % CLASSES
    logits = torch.randn(PHOTOS, CLASSES, generator=generator)
    logits[torch.arange(PHOTOS), labels] += 3 - split / 25
    kept = torch.tensor([place for place in range(PHOTOS) if place != missing])
    return Features({"embed": logits[kept]}, labels[kept], kept)


def splits(**missing: int) -> dict[str, Features]:
    names = [f"{name}/{severity}" for name in CORRUPTIONS for severity in range(1, 6)]
    return {name: features(number, missing.get(name.replace("/", "_"))) for number, name in enumerate(names)}


def test_the_figure_is_alexnets_ratio_of_sums_averaged_over_15() -> None:
    """A mean of the 75 ratios, or errors left as they are, would be another figure."""
    found = score_corruptions(splits(), lambda one: one["embed"], {}, seed=0)
    wrong = {name: (one["embed"].argmax(1) != one.labels).double().mean().item() for name, one in splits().items()}
    errors = {name: [wrong[f"{name}/{severity}"] for severity in range(1, 6)] for name in CORRUPTIONS}
    assert found.value == pytest.approx(mean_corruption_error(errors))
    ratios = [
        error / of for name in CORRUPTIONS for error, of in zip(errors[name], alexnet_errors()[name], strict=True)
    ]
    assert found.value != pytest.approx(sum(ratios) / 75, rel=1e-3)
    assert (found.metric, found.n, len(found.details["by_corruption"])) == ("mce", PHOTOS, 15)


def test_the_interval_draws_photos_and_not_75_times_as_many_images() -> None:
    """Versions of one photo fail together: drawn one by one they would give an interval that is far too narrow."""
    alike = {name: features(40) for name in splits()}
    found = score_corruptions(alike, lambda one: one["embed"], {}, seed=0)
    assert found.ci95[0] < found.value < found.ci95[1]
    share = (features(40)["embed"].argmax(1) != features(40).labels).double().mean().item()
    width = 2 * 1.96 * (share * (1 - share) / PHOTOS) ** 0.5 * found.value / share
    assert found.ci95[1] - found.ci95[0] == pytest.approx(width, rel=0.2)


def test_a_photo_that_cannot_be_read_everywhere_is_in_no_interval() -> None:
    found = score_corruptions(splits(fog_3=7), lambda one: one["embed"], {}, seed=0)
    assert found.n == PHOTOS - 1


def test_a_split_too_few_is_an_error() -> None:
    some = splits()
    del some["fog/3"]
    with pytest.raises(DataError, match="errors of fog are"):
        score_corruptions(some, lambda one: one["embed"], {}, seed=0)
