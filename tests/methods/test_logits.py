"""(1 - w) * cross-entropy + w * T^2 * KL, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from attar.config import LogitsConfig
from attar.methods import LogitDistillation
from small_models import WIDE, always, backbone, batch_of, classifier

STUDENT, TEACHER = (0.7, 0.2, 0.1), (0.2, 0.3, 0.5)
LABELS = -(2 * math.log(0.7) + math.log(0.2) + math.log(0.1)) / 4  # of the labels 0, 1, 2, 0


def softened(shares, temperature):
    powers = [share ** (1 / temperature) for share in shares]
    return [power / sum(powers) for power in powers]


def divergence(temperature):
    """T^2 KL(teacher || student) of the shares above."""
    pairs = zip(softened(TEACHER, temperature), softened(STUDENT, temperature), strict=True)
    return temperature**2 * sum(p * math.log(p / q) for p, q in pairs)


def method_of(**settings):
    logits = [math.log(share) for share in TEACHER]
    method = LogitDistillation(backbone(WIDE), classifier(bias=logits), backbone(), LogitsConfig(**settings))
    always(method.learner.head, [math.log(share) for share in STUDENT])
    return method


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_weighs_labels_and_softened_classes(weight, temperature):
    # catches swapped shares, KL the other way round, a missing T^2, a softened cross-entropy, DeiT's division by K
    output = method_of(teacher_weight=weight, temperature=temperature).training_step(batch_of(4))
    assert output.terms["labels"].item() == pytest.approx(LABELS, rel=1e-5)
    assert output.terms["logits"].item() == pytest.approx(divergence(temperature), rel=1e-5)
    expected = (1 - weight) * LABELS + weight * divergence(temperature)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("features", [48, 96])
def test_the_teachers_classes_are_those_of_its_classifier_on_its_tokens(features):
    method = LogitDistillation(backbone(WIDE, seed=7), classifier(3, features), backbone(), LogitsConfig())
    batch = batch_of(1)
    always(method.learner.head, method.classifier.logits(method.teacher.tokens(batch.views))[0].tolist())
    assert method.training_step(batch).terms["logits"].item() == pytest.approx(0.0, abs=1e-6)
    other = replace(batch, views=1 - batch.views)
    assert method.training_step(other).terms["logits"].item() > 1e-4


def agreeing(method, count, *, shift=0):
    """Batches whose labels are the teacher's classes, or those `shift` further on."""
    for number in range(count):
        batch = batch_of(32, start=32 * number, total=32 * count)
        classes = method.classifier.logits(method.teacher.tokens(batch.views)).argmax(1)
        yield replace(batch, labels=(classes + shift) % 3)


def method_that_tells_images_apart():
    method = LogitDistillation(backbone(WIDE, seed=7), classifier(3), backbone(), LogitsConfig())
    logits = method.classifier.logits(method.teacher.tokens(batch_of(64).views))
    with torch.no_grad():  # so that each class is somewhere the likeliest
        method.classifier.bias = torch.nn.Parameter(-logits.mean(0), requires_grad=False)
    return method


def test_classes_in_another_order_are_noticed_before_the_first_step():
    method = method_that_tells_images_apart()
    assert "agree on 100.0% of 64 views" in method.prepare(agreeing(method, 2))
    assert "chance:" not in method.prepare(agreeing(method, 2))
    words = method.prepare(agreeing(method, 2, shift=1))
    assert "agree on 0.0% of 64 views" in words
    assert "no better than chance: are the data's classes in another order" in words


def test_a_classifier_that_always_says_the_same_agrees_by_chance_alone():
    # catches a comparison with 1 / K: two of the four labels are the class that it always names
    method = method_of()
    method.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    words = method.prepare([batch_of(4)])
    assert "agree on 50.0% of 4 views, 50.0% by chance" in words
    assert "no better than chance" in words


def test_a_few_hundred_views_are_enough():
    method = method_that_tells_images_apart()
    stream = agreeing(method, 20)
    assert "of 512 views" in method.prepare(stream)
    assert len(list(stream)) == 4


def test_labels_change_their_own_term_alone():
    method, batch = method_of(), batch_of(4)
    other = replace(batch, labels=torch.zeros_like(batch.labels))  # the class that the student thinks likeliest
    one, two = method.training_step(batch).terms, method.training_step(other).terms
    assert one["logits"] == two["logits"]
    assert one["labels"] > two["labels"]
