"""Mean squared error between class tokens, through one linear layer."""

import pytest
import torch

from attar.methods import Hint
from small_models import TINY, WIDE, backbone, batch_of


def test_the_loss_is_the_mean_squared_error_by_hand():
    # catches a norm in front of the regressor, the patches in place of the class token, a sum over channels, a half
    method, batch = Hint(backbone(WIDE, seed=7), backbone()), batch_of(5)
    with torch.no_grad():
        regressor = method.learner.regressor
        regressed = method.student.tokens(batch.views).cls @ regressor.weight.T + regressor.bias
        target = method.teacher.tokens(batch.views).cls
    expected = ((regressed - target) ** 2).sum().item() / (5 * 48)
    output = method.training_step(batch)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["hint"].item() == output.loss.item()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    method = Hint(backbone(TINY, seed=3), backbone(TINY, seed=3))
    with torch.no_grad():
        method.learner.regressor.weight.copy_(torch.eye(32))
        method.learner.regressor.bias.zero_()
    assert method.training_step(batch_of(4)).loss.item() == pytest.approx(0.0, abs=1e-10)


def test_one_linear_layer_is_all_that_is_added_to_the_student():
    method = Hint(backbone(WIDE), backbone())
    added = {name: tuple(p.shape) for name, p in method.learner.named_parameters() if not name.startswith("student.")}
    assert added == {"regressor.weight": (48, 32), "regressor.bias": (48,)}


def test_targets_are_raw():
    # a standardised target would have the loss of every scale alike
    method, batch = Hint(backbone(WIDE, seed=7), backbone()), batch_of(4)
    loss = method.training_step(batch).loss.item()
    with torch.no_grad():
        for parameter in method.teacher.model.norm.parameters():
            parameter.mul_(10.0)
    assert method.training_step(batch).loss.item() > 50 * loss
