from __future__ import annotations

from pathlib import Path

import pytest

from attar.evaluation.dense import DepthProbe, DptProbe
from attar.evaluation.dense.depth import dinov2_layers
from attar.evaluation.dense.splits import DenseSplits
from attar.models import Backbone, Preprocess, load_backbone
from small_models import backbone
from small_pairs import config, shapes


@pytest.fixture(scope="module")
def trunk() -> Backbone:
    found = backbone(img_size=64)
    found.normalise_with(Preprocess())
    return found


@pytest.fixture(scope="module")
def splits() -> DenseSplits:
    return shapes()


def test_bins_learn_depth_from_frozen_tokens(trunk: Backbone, splits: DenseSplits) -> None:
    dense = {"batch_size": 4, "moments": 2}
    trained = DepthProbe(config(steps=40, lr=2e-2, **dense)).judge(trunk, splits)
    fresh = DepthProbe(config(steps=2, lr=1e-9, **dense)).judge(trunk, splits)
    assert trained.metric == "rmse"
    assert trained.value < fresh.value
    assert trained.details["silog"] < fresh.details["silog"]  # not the scale alone
    assert set(trained.details) >= {"delta1", "delta2", "delta3", "abs_rel", "rmse_log", "log10", "silog", "checks"}
    assert [check["step"] for check in trained.details["checks"]] == [20, 40]


def test_one_layer_makes_lin1(trunk: Backbone) -> None:
    probe = DepthProbe(config(layers=-1))
    recipe = probe.recipe(trunk, 24)
    assert recipe.layers == (-1,)
    assert dinov2_layers(24) == (4, 11, 17, 23)
    assert recipe.geometry.mirror


def test_paper_mode_chooses_dpt_by_the_test_images_and_says_so(trunk: Backbone) -> None:
    # trap 7: the best moment by what is reported
    score = DptProbe(config("paper", steps=2, batch_size=2, moments=2)).judge(trunk, shapes(2, 1, 2))
    assert score.protocol["chosen_on"] == "test"
    assert score.value == pytest.approx(min(check["value"] for check in score.details["checks"]))
    assert any("depth-mix" in departure for departure in score.protocol["departures"])
    assert score.protocol["statistics"] == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert trunk.preprocess == Preprocess()  # given back


def test_numbers_are_the_papers(trunk: Backbone) -> None:
    dpt, bins = (probe(config("paper")).recipe(trunk, 24_231) for probe in (DptProbe, DepthProbe))
    assert (dpt.steps, dpt.lr, dpt.warmup_steps, dpt.backbone_lr, dpt.fine_tune) == (25_000, 4e-4, 1500, 0.1, False)
    assert (bins.steps, bins.warmup_steps, bins.schedule, bins.clip_norm) == (38_400, 12_800, "cosine", 35.0)
    assert 518 // 4 == 129  # Proteus' stride
    assert DepthProbe(config("paper")).img_size(224, patch_size=14) == 476


def test_a_conv_net_takes_both_heads() -> None:
    student, few = load_backbone("resnet10t", weights="random", img_size=64), shapes(2, 1, 2)
    score = DepthProbe(config(steps=1, batch_size=2, moments=1)).judge(student, few)
    assert score.n == 2
    assert DptProbe(config(steps=1, batch_size=2, moments=1)).judge(student, few).n == 2


def test_the_state_of_a_finished_training_is_taken_away(trunk: Backbone, tmp_path: Path) -> None:
    DepthProbe(config(steps=2, batch_size=2, save_every=1)).judge(trunk, shapes(2, 1, 2), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
