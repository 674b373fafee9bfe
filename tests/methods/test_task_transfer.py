"""The paper's second stage: spec task_transfer O1, O9, O10, on the level of the method."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attar.config import OptimConfig
from attar.losses import kl_divergence
from attar.methods import TASKS, Supervised, TaskTransfer
from attar.models import Backbone, Preprocess, Provenance, TaskModel
from attar.train import build_state
from attar.types import Batch, Tokens
from small_models import TINY, WIDE, backbone, batch_of

TASK = TASKS["classification"]


def method_of(student=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = TaskModel.classifier(backbone(WIDE, seed=7), "abc")
        student = student or TaskModel.classifier(backbone(TINY), "abc")
        with torch.no_grad():
            teacher.head.weight.mul_(30)
        return TaskTransfer(teacher, student, TASK, **settings)


@pytest.mark.parametrize(
    ("temperature", "loss", "gradient"),
    [
        (1.0, 0.266217, (-0.331908, 0.088605, 0.243303)),
        (2.0, 0.313684, (-0.086574, 0.013069, 0.073505)),
        (4.0, 0.328202, (-0.021474, 0.001709, 0.019765)),
    ],
)
def test_kl_with_temperature_by_hand(temperature, loss, gradient):
    # catches a mean over classes, a missing tau^2, KL the other way round
    student = torch.ones(1, 3, requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 0.0]])
    found = kl_divergence(student, teacher, temperature=temperature)
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=2e-6)
    torch.testing.assert_close(student.grad, temperature**2 * torch.tensor([gradient]), atol=2e-5, rtol=1e-4)


def steps(method, labels, count=3):
    state = build_state(method.learner, method.student, OptimConfig(ema_decay=0.0))
    for group in state.optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(count):
        method.training_step(replace(batch_of(6), labels=labels)).loss.backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
    return {name: value.clone() for name, value in method.learner.state_dict().items()}


def test_random_labels_on_the_pool_give_bit_identical_weights():
    start = method_of().learner.state_dict()
    without, random = (steps(method_of(), labels) for labels in (None, torch.tensor([2, 0, 1, 1, 0, 2])))
    assert all(torch.equal(without[name], random[name]) for name in without)
    assert not torch.equal(without["head.weight"], start["head.weight"])  # it did learn


def test_the_teacher_stays_as_it_is():
    method = method_of(feature_weight=1.0)
    before = copy.deepcopy(method.teacher.state_dict())
    method.learner.train()
    steps(method, None)
    assert not method.teacher.training
    assert all(torch.equal(before[name], value) for name, value in method.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


def test_teacher_and_student_see_the_same_view():
    method, batch = method_of(temperature=2.0), batch_of(4)
    with torch.no_grad():
        method.learner.head.weight.mul_(30)
        target = method.teacher.head(method.teacher.backbone.tokens(batch.views))
        own = method.learner.head(method.student.tokens(batch.views))
    method.learner.eval()
    expected = kl_divergence(own, target, temperature=2.0).mean()
    torch.testing.assert_close(method.training_step(batch).loss, expected)
    assert not torch.isclose(expected, kl_divergence(own, target.roll(1, 0), temperature=2.0).mean(), rtol=1e-3)


def test_a_certain_teacher_that_is_right_teaches_as_labels_do():
    batch = batch_of(6)

    class Oracle(nn.Module):
        def forward(self, tokens):
            return 1e3 * F.one_hot(batch.labels, 3).float()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        students = [TaskModel.classifier(backbone(), "abc") for _ in range(2)]
    students[1].load_state_dict(students[0].state_dict())
    oracle = TaskModel(backbone(WIDE), Oracle(), "abc")
    taught, labelled = TaskTransfer(oracle, students[0], TASK), Supervised(students[1], TASK)
    losses = [method.training_step(batch).loss for method in (taught, labelled)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(taught.learner.head.weight.grad, labelled.learner.head.weight.grad)


# --- O10: points in a plane ------------------------------------------------------------------------------------------

MEANS = torch.tensor([[[-1.0, -1.0], [1.0, 1.0]], [[-1.0, 1.0], [1.0, -1.0]]])  # of two classes, two places each
SPREAD = 0.6


class Plane(nn.Module):
    """A small network on the first two pixels of an image, which stand for a point."""

    def __init__(self, width, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())

    def forward(self, images):
        features = self.net(images[:, 0, 0, :2])
        return Tokens(features, features[:, None], (1, 1), features[:, None, :][:, :0])


class Bayes(nn.Module):
    """Returns the points; with `BayesHead` on top this is the best classifier there is."""

    def forward(self, images):
        points = images[:, 0, 0, :2]
        return Tokens(points, points[:, None], (1, 1), points[:, None][:, :0])


class BayesHead(nn.Module):
    def forward(self, tokens):
        squares = (tokens.cls[:, None, None] - MEANS).square().sum(-1)  # (B, classes, places)
        return (-squares / 2 / SPREAD**2).logsumexp(-1)


NO_CHANGE = Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def plane(model):
    return Backbone(model, img_size=2, preprocess=NO_CHANGE, source=Provenance("plane"))


def points(count, seed, *, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    labels, places = torch.arange(count) % 2, torch.arange(count) // 2 % 2
    images = torch.zeros(count, 3, 2, 2)
    images[:, 0, 0, :2] = MEANS[labels, places] + SPREAD * torch.randn(count, 2, generator=generator) + shift
    return images, labels


def learn(method, images, labels, count):
    optimizer = torch.optim.Adam(method.learner.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        rows = torch.randint(len(images), (min(128, len(images)),), generator=generator)
        batch = Batch(images[rows], rows, rows, rows, step, len(rows), labels=labels[rows])
        method.training_step(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def accuracy(seed, pool):
    """Of a student after 10 labels, before which it saw the pool, or did not."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = TaskModel.classifier(plane(Plane(16, seed)), "ab")
    few, labels = points(10, seed + 100)
    if pool is not None:
        teacher = TaskModel(plane(Bayes()), BayesHead(), "ab")
        learn(TaskTransfer(teacher, student, TASK), pool, torch.zeros(len(pool), dtype=torch.int64), 100)
    learn(Supervised(student, TASK), few, labels, 30)
    test, truth = points(1000, 999)
    return (student(test).argmax(1) == truth).float().mean().item()


def test_transfer_helps_few_labels_and_less_so_from_a_shifted_pool():
    own, shifted = points(5000, 1)[0], points(5000, 1, shift=torch.tensor([4.0, 4.0]))[0]
    alone, both, far = ([accuracy(seed, pool) for seed in range(10)] for pool in (None, own, shifted))
    assert sum(b >= a for a, b in zip(alone, both, strict=True)) >= 9, (alone, both)
    assert sum(far) < sum(both), (far, both)


# --- a class for each pixel ------------------------------------------------------------------------------------------


def segmenters():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = TaskModel.segmenter(backbone(WIDE, img_size=64, seed=7), "abc")  # 8 x 8 tokens
        student = TaskModel.segmenter(backbone(TINY), "abc")  # 4 x 4
        with torch.no_grad():
            teacher.head.layers.conv.weight.mul_(300)
    return teacher, student


def test_pixels_of_the_student_learn_those_of_the_teacher_and_no_labels():
    teacher, student = segmenters()
    method, batch = TaskTransfer(teacher, student, TASKS["segmentation"], temperature=2.0), batch_of(4)
    large = F.interpolate(batch.views, size=(64, 64), mode="bicubic", antialias=True)
    with torch.no_grad():
        target = F.interpolate(teacher.head(teacher.backbone(large)), size=(4, 4), mode="bilinear")
        own = student.head(student.backbone.tokens(batch.views))
    method.learner.eval()
    expected = kl_divergence(own.movedim(1, -1), target.movedim(1, -1), temperature=2.0).mean()
    torch.testing.assert_close(method.training_step(batch).loss, expected)
    found = [
        steps(TaskTransfer(*segmenters(), TASKS["segmentation"]), labels)
        for labels in (None, torch.tensor([2, 0, 1, 1, 0, 2]))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
