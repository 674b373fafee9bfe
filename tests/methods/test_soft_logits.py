"""The teacher's softened classes, without labels."""

import math
from dataclasses import replace

import pytest
import torch

from attar.config import LogitsConfig
from attar.losses import kl_divergence
from attar.methods import SoftLogits
from small_models import WIDE, always, backbone, batch_of, classifier


def method_of(teacher_logits=None, **settings):
    learned = classifier(bias=teacher_logits) if teacher_logits else classifier()
    return SoftLogits(backbone(WIDE, seed=7), learned, backbone(), LogitsConfig(**settings))


def test_a_uniform_teacher_by_hand():
    # KL(uniform || q) = -log 3 - mean(log q); the other way round it would be log 3 - entropy of q
    method = method_of([5.0, 5.0, 5.0])
    shares = (0.9, 0.09, 0.01)
    always(method.learner.head, [math.log(share) for share in shares])
    expected = -math.log(3) - sum(math.log(share) for share in shares) / 3
    assert expected != pytest.approx(math.log(3) + sum(share * math.log(share) for share in shares), rel=0.1)
    assert method.training_step(batch_of(4)).loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_to_learn_from_a_teacher_of_the_same_classes():
    method = method_of([3.0, 1.0, -2.0], temperature=4.0)
    always(method.learner.head, [13.0, 11.0, 8.0])  # logits may differ by a constant
    assert method.training_step(batch_of(4)).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_labels_are_neither_needed_nor_looked_at():
    method, batch = method_of(), batch_of(4)
    losses = {
        method.training_step(replace(batch, labels=labels)).loss.item()
        for labels in (None, batch.labels, torch.zeros_like(batch.labels))
    }
    assert len(losses) == 1


def test_the_share_of_labels_plays_no_part():
    losses = []
    for weight in (0.1, 0.9):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses.append(method_of(teacher_weight=weight).training_step(batch_of(4)).loss.item())
    assert losses[0] == losses[1]


def test_each_image_learns_the_classes_of_its_own_view():
    method, batch = method_of(temperature=2.0), batch_of(4)
    with torch.no_grad():
        method.learner.head.weight.normal_(generator=torch.Generator().manual_seed(0))
        target = method.classifier.logits(method.teacher.tokens(batch.views))
        logits = method.learner.head(method.student.tokens(batch.views).cls)
    expected = kl_divergence(logits, target, temperature=2.0).mean()
    torch.testing.assert_close(method.training_step(batch).loss, expected)
    assert not torch.isclose(expected, kl_divergence(logits, target.roll(1, 0), temperature=2.0).mean(), rtol=1e-3)
