from __future__ import annotations

import pytest
import torch

from attar.errors import ConfigError
from attar.evaluation.dense import DeepLabProbe, SegmentationProbe, UPerNetProbe
from attar.evaluation.dense.segmentation import proteus_layers
from attar.evaluation.dense.splits import DenseSplits
from attar.evaluation.dense.targets import Classes
from attar.models import Backbone, load_backbone
from small_models import backbone
from small_pairs import config, shapes


@pytest.fixture(scope="module")
def trunk() -> Backbone:
    return backbone(img_size=64)


@pytest.fixture(scope="module")
def splits() -> DenseSplits:
    return shapes()


def constant(splits: DenseSplits) -> float:
    """Mean IoU of saying "ground" everywhere."""
    share = torch.cat([pair.classes().flatten() for pair in splits.test]).eq(0).float().mean().item()
    return share / 2


def test_the_closed_form_head_beats_a_constant(trunk: Backbone, splits: DenseSplits) -> None:
    score = SegmentationProbe(config()).judge(trunk, splits)
    assert score.value > constant(splits) + 0.05
    assert score.ci95[0] <= score.value <= score.ci95[1]
    assert score.protocol["chosen_on"] == "val"
    assert (score.metric, score.n, len(score.details["iou"])) == ("miou", 8, 2)
    assert score == SegmentationProbe(config()).judge(trunk, splits)


def test_a_class_without_an_example_is_never_predicted(trunk: Backbone, splits: DenseSplits) -> None:
    wider = DenseSplits(splits.train, splits.val, splits.test, 5, 0, "drawn")
    score = SegmentationProbe(config()).judge(trunk, wider)
    assert score.details["iou"][2:] == [None] * 3


@pytest.mark.parametrize("probe", [SegmentationProbe, UPerNetProbe, DeepLabProbe])
def test_a_trained_head_beats_an_untrained_one(
    trunk: Backbone, splits: DenseSplits, probe: type[SegmentationProbe]
) -> None:
    dense = {"batch_size": 4, "moments": 1, "fine_tune": False, "warmup_steps": 0}
    settings = config("paper" if probe is SegmentationProbe else "honest", steps=15, lr=5e-3, **dense)
    trained = probe(settings).judge(trunk, splits)
    fresh = probe(config(settings.mode, steps=1, lr=1e-9, **dense)).judge(trunk, splits)
    assert trained.value > fresh.value
    assert trained.value > 0.9 * constant(splits)


def test_a_conv_student_takes_deeplab_and_learns_in_paper_mode() -> None:
    student = load_backbone("resnet10t", weights="random", img_size=64)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    score = DeepLabProbe(config("paper", steps=2, batch_size=2, moments=1)).judge(student, shapes(2, 1, 2))
    assert score.protocol["fine_tune"]
    assert score.protocol["chosen_on"] == "val"
    assert score.details["checks"][0]["step"] == 2
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_numbers_are_the_papers(trunk: Backbone) -> None:
    linear, upernet = (probe(config("paper")).recipe(trunk, 20_210) for probe in (SegmentationProbe, UPerNetProbe))
    assert (linear.steps, linear.lr, linear.weight_decay, linear.warmup_steps) == (60_000, 8e-4, 0.05, 1500)
    assert (upernet.lr, upernet.layer_decay, upernet.drop_path, upernet.fine_tune) == (1e-4, 0.65, 0.1, True)
    assert not linear.norm
    assert proteus_layers(12) == (3, 5, 7, 11)
    assert proteus_layers(24) == (7, 11, 15, 23)


@pytest.mark.parametrize(("size", "stride"), [(518, 345), (512, 341)])
def test_windows_stand_as_far_apart_as_the_papers(size: int, stride: int) -> None:
    assert 2 * size // 3 == stride
    probe = SegmentationProbe(config("paper"))
    assert probe.img_size(224, patch_size=14 if size == 518 else 16) == size
    assert SegmentationProbe(config()).img_size(224, patch_size=14) == 224
    assert SegmentationProbe(config("paper", crop=64)).img_size(224, patch_size=14) == 64


def test_honest_mode_trains_shorter_and_keeps_the_share_of_the_warm_up(trunk: Backbone) -> None:
    recipe = UPerNetProbe(config()).recipe(trunk, 160)
    assert (recipe.steps, recipe.warmup_steps, recipe.fine_tune, recipe.statistics) == (1000, 25, False, None)
    assert UPerNetProbe(config()).recipe(trunk, 16_000).steps == 20_000
    assert UPerNetProbe(config(steps=6000)).recipe(trunk, 160).warmup_steps == 150


def test_sizes_that_do_not_fit_are_refused(trunk: Backbone, splits: DenseSplits) -> None:
    with pytest.raises(ConfigError, match=r"crops of 32 px are asked for, and the backbone takes 64"):
        SegmentationProbe(config(crop=32)).judge(trunk, splits)
    with pytest.raises(ConfigError, match="do not work"):
        UPerNetProbe(config(stride=65)).judge(trunk, splits)


def test_windows_of_the_paper_see_images_resized_to_them(trunk: Backbone) -> None:
    paper, honest = (UPerNetProbe(config(mode)).recipe(trunk, 9).geometry for mode in ("paper", "honest"))
    assert (paper.short_side, honest.short_side) == (64, None)
    assert Classes(2).metric == "miou"
