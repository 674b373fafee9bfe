"""Robustness: each of the mistakes that tables are made with gives another number here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attar.errors import DataError, ShapeError
from attar.evaluation.datasets import EXTRA_CORRUPTIONS
from attar.evaluation.metrics import top1
from attar.evaluation.robustness import (
    alexnet_errors,
    corruption_errors,
    mean_corruption_error,
    merge_classes,
    select_classes,
)

AVERAGES = {  # over severities, as google-research/augmix prints them
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def half_as_bad() -> dict[str, list[float]]:
    """Errors that are half of AlexNet's."""
    return {name: [error / 2 for error in errors] for name, errors in alexnet_errors().items()}


# ---- ImageNet-A, -R and ObjectNet


def test_the_prediction_is_one_of_the_subset() -> None:
    """Argmax over all classes is class 0, none of the subset: looked up there, both rows would be wrong."""
    logits = torch.tensor([[9.0, 1.0, 0.0, 3.0], [9.0, 2.0, 0.0, 1.0]])
    classes, labels = torch.tensor([1, 3]), torch.tensor([1, 0])
    assert top1(select_classes(logits, classes), labels) == 1.0
    assert not torch.isin(logits.argmax(1), classes).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 19), min_size=1, max_size=19, unique=True))
def test_labels_are_positions_in_the_subset(seed: int, chosen: list[int]) -> None:
    logits = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed))
    classes = torch.tensor(sorted(chosen))
    best = classes[select_classes(logits, classes).argmax(1)]
    assert torch.equal(logits.gather(1, best[:, None])[:, 0], logits[:, classes].amax(1))


def test_the_best_of_several_classes_speaks_for_one_of_the_data() -> None:
    """Summed or averaged logits, or the first class alone, would choose the second group."""
    logits = torch.tensor([[-9.0, 5.0, 4.0, 3.0]])
    merged = merge_classes(logits, [[0, 1], [2, 3]])
    assert merged.tolist() == [[5.0, 4.0]]
    assert logits.view(2, 2).sum(1).argmax() == 1


def test_a_mapping_that_does_not_fit_is_refused() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ShapeError, match=r"logits are \(2, 4\) but class 7 is asked for"):
        select_classes(logits, torch.tensor([1, 7]))
    with pytest.raises(ShapeError, match="class 2 of the classifier stands for two"):
        merge_classes(logits, [[1, 2], [2]])
    with pytest.raises(ShapeError, match="class 1 stands for none"):
        merge_classes(logits, [[1], []])


# ---- ImageNet-C


def test_the_worked_example_is_a_ratio_of_sums() -> None:
    """Spec evaluation §6.6. The mean of the five ratios is 0.5531549."""
    errors = half_as_bad() | {"gaussian_noise": [0.3, 0.4, 0.5, 0.6, 0.7]}
    assert corruption_errors(errors)["gaussian_noise"] == pytest.approx(0.5640616, abs=1e-7)


def test_alexnets_errors_are_the_published_ones() -> None:
    """A digit that was read wrong changes an average."""
    assert alexnet_errors()["gaussian_noise"] == (0.69528, 0.82542, 0.93554, 0.98138, 0.99452)
    averages = {name: sum(errors) / 5 for name, errors in alexnet_errors().items()}
    assert averages == pytest.approx(AVERAGES, abs=1e-9)


def test_alexnet_itself_has_an_mce_of_one() -> None:
    assert mean_corruption_error(alexnet_errors()) == pytest.approx(1.0)
    assert mean_corruption_error(half_as_bad()) == pytest.approx(0.5)


def test_each_corruption_weighs_the_same() -> None:
    """One ratio of all errors would weigh hard corruptions more and give another mean."""
    errors = half_as_bad() | {"brightness": list(alexnet_errors()["brightness"])}
    assert mean_corruption_error(errors) == pytest.approx((14 * 0.5 + 1) / 15)
    pooled = sum(map(sum, errors.values())) / sum(map(sum, alexnet_errors().values()))
    assert pooled != pytest.approx((14 * 0.5 + 1) / 15, abs=1e-3)


def test_the_four_extra_corruptions_do_not_count() -> None:
    """Averaged over whatever is there, 19 corruptions would give a lower figure."""
    errors = half_as_bad() | {name: [0.0] * 5 for name in EXTRA_CORRUPTIONS}
    assert mean_corruption_error(errors) == pytest.approx(0.5)
    assert len(corruption_errors(errors)) == 15


def test_a_part_of_the_corruptions_is_no_mce() -> None:
    errors = half_as_bad()
    del errors["fog"], errors["snow"]
    with pytest.raises(DataError, match="snow, fog of ImageNet-C's 15 corruptions are missing"):
        mean_corruption_error(errors)
    with pytest.raises(DataError, match=r"'gausian_noise' is no corruption.*Did you mean 'gaussian_noise'"):
        mean_corruption_error(half_as_bad() | {"gausian_noise": [0.1] * 5})


@pytest.mark.parametrize("wrong", [[0.1] * 4, [30.0, 40.0, 50.0, 60.0, 70.0]])
def test_severities_that_are_missing_and_percents_are_refused(wrong: list[float]) -> None:
    with pytest.raises(DataError, match=r"errors of fog are .* five shares in \[0, 1\]"):
        mean_corruption_error(half_as_bad() | {"fog": wrong})
