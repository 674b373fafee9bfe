from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attar.errors import ConfigError, NonFiniteError, ShapeError
from attar.evaluation import (
    DINOV2_CODE_LRS,
    DINOV2_PAPER_LRS,
    SYNCLR_LRS,
    ProbeFeatures,
    ProbeResult,
    linear_probe,
)
from attar.evaluation.linear_probe import head_name
from attar.evaluation.probe_features import LAYOUTS, Layout

CLASSES = 5


def stored(images: int = 300, *, views: int = 1, noise: float = 1.0, seed: int = 0) -> ProbeFeatures:
    """Clusters: the last class token says half of it, the mean patch token and the earlier blocks the rest."""
    labels = torch.arange(images) % CLASSES
    means = torch.randn(CLASSES, 5, 8, generator=torch.Generator().manual_seed(99))
    drawn = torch.randn(views, images, 5, 8, generator=torch.Generator().manual_seed(seed))
    tokens = means[labels] + noise * drawn
    return ProbeFeatures(tokens[:, :, :4].contiguous(), tokens[:, :, 4].contiguous(), labels)


def probe(train: ProbeFeatures, test: ProbeFeatures, **settings: object) -> ProbeResult:
    return linear_probe(train, test, **{"mode": "paper", "batch_size": 32, "epochs": 4} | settings)  # type: ignore[arg-type]


def share(predicted: Tensor, labels: Tensor) -> float:
    return (predicted == labels).double().mean().item()


def test_there_are_52_heads_named_by_what_they_read_and_their_rate() -> None:
    found = probe(stored(), stored(seed=1))
    assert list(found.scores) == [head_name(layout, lr) for layout in LAYOUTS for lr in DINOV2_CODE_LRS]
    assert len(found.scores) == 52
    assert next(iter(found.scores)) == "blocks=1 lr=1e-5"
    assert next(reversed(found.scores)) == "blocks=4 avgpool lr=1e-1"
    assert (found.absent, found.batch_size, found.steps) == ((), 32, 36)


def test_lists_of_learning_rates_are_those_of_their_sources() -> None:
    # DINOv2's paper and code print different lists of one length
    assert [len(rates) for rates in (DINOV2_CODE_LRS, DINOV2_PAPER_LRS, SYNCLR_LRS)] == [13, 13, 9]
    assert [(min(rates), max(rates)) for rates in (DINOV2_CODE_LRS, DINOV2_PAPER_LRS)] == [(1e-5, 0.1), (1e-4, 0.5)]
    assert [100 * lr for lr in SYNCLR_LRS] == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50])


def test_separable_classes_are_learned() -> None:
    found = probe(stored(noise=0.3), stored(noise=0.3, seed=1), epochs=10)
    assert found.scores[found.chosen] == found.test["test"] == 1.0


def test_four_blocks_and_patches_tell_more_than_the_last_class_token() -> None:
    # as the clusters are made; heads that all read the same columns would score alike
    found = probe(stored(1000, noise=3), stored(1000, noise=3, seed=1), learning_rates=[0.1], epochs=5)
    one, pooled, four, all_of_it = found.scores.values()
    assert one < pooled < four < all_of_it


def test_the_chosen_head_is_in_the_result_and_judges_alike() -> None:
    test = stored(seed=1, noise=2)
    found = probe(stored(noise=2), test)
    logits = found.head.logits(test)
    assert logits.shape == (300, CLASSES)
    assert share(logits.argmax(1), test.labels) == found.test["test"] == found.scores[found.chosen]
    assert head_name(found.head.layout, found.head.lr) == found.chosen
    assert found.scores[found.chosen] == max(found.scores.values())


def test_paper_mode_chooses_on_the_test_part_and_honest_mode_on_another() -> None:
    # the validation part wants other classes than the test part, so that what is best there is worst here
    train, test = stored(noise=2), stored(noise=2, seed=1)
    val = replace(test, labels=(test.labels + 1) % CLASSES)
    paper, honest = probe(train, test, epochs=10), probe(train, test, mode="honest", val=val, epochs=10)
    assert paper.test["test"] == max(paper.scores.values())
    assert honest.chosen != paper.chosen
    assert honest.test["test"] < paper.test["test"]
    assert honest.scores[honest.chosen] == max(honest.scores.values())
    assert honest.test["test"] == paper.scores[honest.chosen]  # the heads are the same, the choice is not
    assert (paper.mode, honest.mode) == ("paper", "honest")


def test_of_equal_heads_the_first_is_chosen() -> None:
    found = probe(stored(noise=0.1), stored(noise=0.1, seed=1), epochs=10)
    assert list(found.scores.values()).count(1.0) > 1
    assert found.chosen == next(name for name, score in found.scores.items() if score == 1.0)


def test_other_parts_are_judged_by_the_chosen_head_through_their_classes() -> None:
    # logits are picked before the largest is taken: classes that the part has not cannot be found in it
    train, test = stored(noise=3), stored(noise=3, seed=1)
    index = torch.tensor([3, 1])
    some = torch.isin(test.labels, index)
    labels = (test.labels[some] == 1).long()  # class 3 is its first, class 1 its second
    part = ProbeFeatures(test.cls[:, some], test.mean_patch[:, some], labels, class_index=index)
    found = probe(train, test, others={"two": part, "again": test})
    logits = found.head.logits(test)[some]
    assert found.test["two"] == share(logits[:, index].argmax(1), labels)
    assert found.test["two"] > share(logits.argmax(1), test.labels[some])
    assert found.test["again"] == found.test["test"]
    assert found.head.logits(part).shape == (int(some.sum()), 2)


def test_fewer_layouts_are_said() -> None:
    train, test = (replace(stored(seed=seed), mean_patch=None) for seed in (0, 1))
    found = probe(train, test)
    assert found.absent == (Layout(1, True), Layout(4, True))
    assert len(found.scores) == 26
    last = [replace(part, cls=part.cls[:, :, -1:]) for part in (train, test)]
    assert len(probe(*last).scores) == 13
    assert probe(*last).scores == {name: found.scores[name] for name in list(found.scores)[:13]}


def test_a_batch_of_more_images_than_there_are_is_all_of_them() -> None:
    # drop_last alone would leave no step; the rate follows the images that are there
    found, same = (probe(stored(20), stored(seed=1), batch_size=size, epochs=30) for size in (512, 20))
    assert (found.batch_size, found.steps) == (20, 30)
    assert torch.equal(found.head.weight, same.head.weight)


def test_each_epoch_reads_the_next_view() -> None:
    train, test = stored(views=3), stored(seed=1)
    plain = probe(train, test, epochs=2)
    kept = replace(train, cls=train.cls[:2], mean_patch=train.mean_patch[:2])
    swapped = replace(train, cls=train.cls.flip(0), mean_patch=train.mean_patch.flip(0))
    assert torch.equal(probe(kept, test, epochs=2).head.weight, plain.head.weight)
    assert not torch.equal(probe(swapped, test, epochs=2).head.weight, plain.head.weight)


def test_double_precision_is_there_for_comparison() -> None:
    single, double = (probe(stored(), stored(seed=1), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert double.head.weight.dtype == torch.float64
    assert double.chosen == single.chosen
    torch.testing.assert_close(single.head.weight.double(), double.head.weight, rtol=0, atol=1e-5)


def test_what_cannot_be_judged_is_an_error() -> None:
    train, test = stored(), stored(seed=1)
    with pytest.raises(ConfigError, match="Give val"):
        probe(train, test, mode="honest")
    with pytest.raises(ShapeError, match="same backbone"):
        probe(train, replace(test, mean_patch=None))
    with pytest.raises(ShapeError, match="class 5 of 5"):
        probe(train, replace(test, labels=test.labels + 1))
    with pytest.raises(ShapeError, match="logit 7"):
        probe(train, replace(test, labels=test.labels * 0, class_index=torch.tensor([7])))
    with pytest.raises(NonFiniteError, match="not finite"):
        probe(replace(train, cls=train.cls * float("nan")), test)
