from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.errors import DataError
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.targets import Classes, Depth
from attar.evaluation.depth import silog_loss
from small_pairs import Drawn


def drawn(numbers: list[list[int]]) -> Drawn:
    found = np.array(numbers, np.uint8)
    return Drawn("drawn", np.zeros((*found.shape, 3), np.uint8), found)


def silog(predicted: torch.Tensor, target: torch.Tensor, step: int) -> torch.Tensor:
    return silog_loss(predicted, target)


def test_classes_count_from_the_first_and_others_are_void() -> None:
    # ADE20K: 0 is void, 150 the last class; without the shift class 150 would be none, and 0 one
    assert Classes(150, first_class=1).read(drawn([[0, 1, 150, 151, 255]])).tolist() == [[255, 0, 149, 255, 255]]
    assert Classes(255).read(drawn([[0, 254, 255]])).tolist() == [[0, 254, 255]]


def test_void_pixels_pull_at_nothing() -> None:
    # a mean over all pixels, or void as a class, would change loss or gradient
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    target[:, 2:] = 255
    loss = Classes(3).loss([logits], target, 0)
    expected = torch.nn.functional.cross_entropy(logits[:, :, :2], target[:, :2].long())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :, 2:].any()
    assert Classes(3).loss([logits], torch.full_like(target, 255), 0).item() == 0  # no number by 0


def test_auxiliary_predictions_weigh_less() -> None:
    logits, target = torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    alone = Classes(3).loss([logits], target, 0)
    torch.testing.assert_close(Classes(3).loss([logits, logits], target, 0), 1.4 * alone)


def test_segmentation_says_every_class_and_accuracies() -> None:
    # the oracle of spec evaluation 6.3: IoU 1/3, 2/3, 2/3, none
    truth = torch.tensor([[0, 0, 1], [1, 255, 2], [2, 2, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1], [1, 3, 2], [0, 2, 1]])
    logits = torch.nn.functional.one_hot(predicted, 4).permute(2, 0, 1)[None].float()
    score = Classes(4).score(Classes(4).rows(logits, truth), {}, seed=0)
    assert score.value == pytest.approx(0.5555556)
    assert score.details["iou"] == [pytest.approx(1 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3), None]
    assert score.details["class_accuracy"] == pytest.approx(0.7222222)
    assert score.details["overall_accuracy"] == pytest.approx(0.7142857)


def test_segmentation_refuses_depth() -> None:
    with pytest.raises(DataError, match="hold depth, and segmentation needs classes"):
        Classes.of(DenseSplits([], [], [], 0, 0, "drawn"))


def test_depth_beyond_the_range_counts_nowhere() -> None:
    target = Depth(silog, farthest=5.0)
    assert target.read(drawn([[0, 1, 4, 5, 200]])).tolist() == [[0, 1, 4, 0, 0]]


def test_depth_errors_are_taken_image_by_image() -> None:
    # the oracle of spec evaluation 6.4: 0.5686115 of two images of two pixels, 0.5852350 of all four together
    target = Depth(silog)
    truth = [torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 8.0]])]
    found = [torch.tensor([[[[1.1, 2.6]]]]), torch.tensor([[[[3.0, 8.0]]]])]
    rows = [target.rows(one, true) for one, true in zip(found, truth, strict=True)]
    score = target.score({name: torch.cat([row[name] for row in rows if row]) for name in rows[0] or {}}, {}, seed=0)
    assert score.value == pytest.approx(0.5686115, abs=1e-6)
    assert score.details["delta1"] == 0.5
    assert score.n == 2
    assert target.rows(found[0], torch.zeros(1, 2)) is None


def test_a_crop_without_known_depth_is_left_out_of_the_loss() -> None:
    predicted = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    target = torch.ones(2, 4, 4)
    target[1] = 0
    alone = Depth(silog).loss([predicted[:1]], target[:1], 0)
    torch.testing.assert_close(Depth(silog).loss([predicted], target, 0), alone)
    assert Depth(silog).loss([predicted], torch.zeros_like(target), 0).item() == 0


def test_the_eigen_crop_is_judged_alone() -> None:
    truth = torch.ones(480, 640)
    found = torch.ones(1, 1, 480, 640)
    found[..., :45, :] = 9  # above the crop
    inside, everywhere = Depth(silog, eigen=True).rows(found, truth), Depth(silog).rows(found, truth)
    assert inside is not None
    assert inside["rmse"].item() == 0
    assert everywhere is not None
    assert everywhere["rmse"].item() > 1
