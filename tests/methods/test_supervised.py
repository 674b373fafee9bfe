"""Cross-entropy with the labels of the images, and nothing else."""

import math
from dataclasses import replace

import pytest
import torch

from attar.methods import Supervised
from attar.models import TaskModel
from small_models import always, backbone, batch_of

SHARES = (0.7, 0.2, 0.1)


@pytest.fixture
def method():
    method = Supervised(TaskModel.classifier(backbone(), "abc"))
    always(method.learner.head, [math.log(share) for share in SHARES])
    return method


def test_the_loss_is_minus_the_log_share_of_the_right_class(method):
    # catches smoothed labels, a sum in place of the mean, classes in another order
    batch = batch_of(4)
    assert batch.labels.tolist() == [0, 1, 2, 0]
    expected = -(2 * math.log(0.7) + math.log(0.2) + math.log(0.1)) / 4
    output = method.training_step(batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert {name: value.item() for name, value in output.terms.items()} == {"labels": output.loss.item()}


def test_labels_belong_to_their_views():
    method, batch = Supervised(TaskModel.classifier(backbone(), "abc")), batch_of(6)
    turned = replace(batch, views=batch.views.flip(0), labels=batch.labels.flip(0))
    mixed = replace(batch, labels=batch.labels.roll(1))
    loss = method.training_step(batch).loss.item()
    assert method.training_step(turned).loss.item() == pytest.approx(loss, rel=1e-5)
    assert method.training_step(mixed).loss.item() != pytest.approx(loss, rel=1e-5)


def test_the_classifier_reads_the_class_token(method):
    with torch.no_grad():
        method.learner.head.weight.normal_()
    batch = batch_of(4)
    logits = method.student(batch.views).cls @ method.learner.head.weight.T + method.learner.head.bias
    expected = torch.nn.functional.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(method.training_step(batch).loss, expected)
