"""What the loop and a run may ask of every method, Proteus and baselines alike."""

from dataclasses import replace

import pytest
import torch

from attar.config import LogitsConfig, ProteusConfig
from attar.errors import ShapeError
from attar.methods import TASKS, Cosine, Hint, LogitDistillation, Proteus, SoftLogits, Supervised, TaskTransfer
from attar.methods.base import first_views
from attar.models import TaskModel
from small_models import TINY, WIDE, backbone, batch_of, classifier

SOFT = LogitsConfig(temperature=2.0, teacher_weight=0.3)
METHODS = {
    "proteus": lambda teacher, student: Proteus(teacher, student, ProteusConfig(resample_tokens=True), seed=0),
    "labels": lambda teacher, student: Supervised(TaskModel.classifier(student, "abc")),
    "logits": lambda teacher, student: LogitDistillation(teacher, classifier_of(teacher), student, SOFT),
    "soft_logits": lambda teacher, student: SoftLogits(teacher, classifier_of(teacher), student, SOFT),
    "hint": Hint,
    "cosine": Cosine,
    "task": lambda teacher, student: TaskTransfer(
        *(TaskModel.classifier(model, "abc") for model in (teacher, student)),
        TASKS["classification"],
        temperature=2.0,
        feature_weight=0.5,
    ),
}
every_method = pytest.mark.parametrize("name", METHODS)
with_teacher = pytest.mark.parametrize("name", [name for name in METHODS if name != "labels"])


def classifier_of(teacher):
    return classifier(3, teacher.embed_dim, embed_dim=teacher.embed_dim)


def method_of(name, *, teacher=WIDE, student=TINY, img_size=32, teacher_img_size=32):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return METHODS[name](backbone(teacher, img_size=teacher_img_size, seed=7), backbone(student, img_size=img_size))


def frozen_parts(method):
    return [getattr(method, part) for part in ("teacher", "classifier") if hasattr(method, part)]


def gradients(method):
    return {name: parameter.grad.clone() for name, parameter in method.learner.named_parameters()}


@every_method
@pytest.mark.parametrize("sizes", [(4, 4), (5, 1, 2)])
def test_shares_of_parts_add_up_to_the_whole_batch(name, sizes):
    # catches a mean over the part; parts of equal size would not, were it divided by their number
    method = method_of(name)
    method.learner.double()
    for part in frozen_parts(method):
        part.double()

    def step(start, count):
        batch = batch_of(count, start=start, total=8)
        output = method.training_step(replace(batch, views=batch.views.double()))
        output.loss.backward()
        return output

    whole = step(0, 8)
    expected = gradients(method)
    method.learner.zero_grad()
    parts = [step(sum(sizes[:number]), count) for number, count in enumerate(sizes)]
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-9)
    for term, value in whole.terms.items():
        assert sum(part.terms[term].item() for part in parts) == pytest.approx(value.item(), rel=1e-9)
    torch.testing.assert_close(gradients(method), expected, rtol=1e-7, atol=1e-12)


@every_method
def test_every_parameter_that_learns_gets_a_gradient(name):
    # a parameter without one stops a wrapper for many ranks, and an unused head would ship work for nothing
    method = method_of(name)
    output = method.training_step(batch_of(6))
    output.loss.backward()
    assert {key for key, grad in gradients(method).items() if not grad.any()} == set()
    assert not any(value.requires_grad for value in output.terms.values())


@with_teacher
def test_the_teacher_stays_as_it_is_while_the_learner_trains(name):
    # a conv teacher in training mode would normalise by the batch, and move its statistics, without any gradient
    method = method_of(name, teacher="test_resnet", teacher_img_size=64)
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    assert any("running_mean" in key for key in before)
    optimizer = torch.optim.AdamW(method.learner.parameters(), lr=1e-2)
    method.learner.train()
    for _ in range(2):
        method.training_step(batch_of(4)).loss.backward()
        optimizer.step()
    frozen = frozen_parts(method)
    assert not any(module.training for part in frozen for module in part.modules() if hasattr(module, "running_mean"))
    assert all(p.grad is None and not p.requires_grad for part in frozen for p in part.parameters())
    assert not {id(p) for p in method.learner.parameters()} & {id(p) for part in frozen for p in part.parameters()}
    torch.testing.assert_close(method.teacher.state_dict(), before, rtol=0, atol=0)


@every_method
def test_ten_steps_on_one_batch_lower_the_loss(name):
    method, batch = method_of(name), batch_of(6)
    optimizer = torch.optim.AdamW(method.learner.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(11):
        output = method.training_step(batch)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@every_method
def test_losses_are_float32_under_bf16(name):
    method, batch = method_of(name), batch_of(6)
    with torch.no_grad():
        exact = method.training_step(batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            output = method.training_step(batch)
    assert {output.loss.dtype, *(value.dtype for value in output.terms.values())} == {torch.float32}
    assert output.loss.item() == pytest.approx(exact.item(), rel=0.02)


@every_method
def test_teacher_and_student_see_the_view_at_their_own_sizes(name):
    method = method_of(name, img_size=16, teacher_img_size=32)
    assert method.training_step(batch_of(4, img_size=32)).loss.isfinite()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "proteus"])  # which hides patches by default
def test_a_conv_student_learns_by_every_baseline(name):
    method = method_of(name, student="test_resnet")
    method.training_step(batch_of(4)).loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(method).values())


@every_method
def test_patches_that_leave_a_rest_are_refused(name):
    # timm's model would drop two pixels at the right and below without a word
    with pytest.raises(ShapeError, match=r"at 30 px.*leave a rest of 6 px. Try --img-size 32"):
        method_of(name, img_size=30)


@with_teacher
def test_patches_of_the_teacher_that_leave_a_rest_are_refused(name):
    with pytest.raises(ShapeError, match=r"at 30 px.*leave a rest of 6 px. Try --teacher-img-size 32"):
        method_of(name, teacher_img_size=30)


def test_titles_tell_methods_apart():
    titles = {method_of(name).title for name in METHODS}
    assert len(titles) == len(METHODS)


@pytest.mark.parametrize(("ranks", "batches"), [(1, 3), (2, 2), (8, 1)])
def test_the_first_views_are_counted_over_all_ranks(monkeypatch, ranks, batches):
    monkeypatch.setattr("attar.methods.base.world_size", lambda: ranks)
    found = list(first_views((replace(batch_of(4), step=step) for step in range(9)), 12))
    assert [batch.step for batch in found] == list(range(batches))
