"""One minus the cosine, of class tokens or of patch tokens on the student's grid."""

import pytest
import torch
import torch.nn.functional as F

from attar.methods import Cosine, Hint
from small_models import TINY, WIDE, backbone, batch_of


def test_patches_are_compared_one_by_one_and_images_count_the_same():
    # catches the class token in place of the patches, a sum over patches
    method, batch = Cosine(backbone(WIDE, seed=7), backbone(), tokens="patch"), batch_of(3)
    with torch.no_grad():
        own = method.learner.projector(method.student.tokens(batch.views).patch)
        expected = 1 - F.cosine_similarity(own, method.teacher.tokens(batch.views).patch, dim=-1)  # (B, N)
    assert method.training_step(batch).loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert "patch tokens" in method.title


@pytest.mark.parametrize("method", [Cosine, Hint])
def test_a_teacher_of_another_grid_is_brought_to_the_students(method):
    teacher = backbone(WIDE, img_size=64, seed=7)
    made = method(teacher, backbone(TINY), tokens="patch")
    assert teacher.grid != made.student.grid
    made.training_step(batch_of(2)).loss.backward()
    assert all(p.grad is not None for n, p in made.learner.named_parameters() if "projector" in n or "regressor" in n)


def test_the_class_token_is_the_default():
    method, batch = Cosine(backbone(WIDE, seed=7), backbone()), batch_of(3)
    with torch.no_grad():
        own = method.learner.projector(method.student.tokens(batch.views).cls)
        expected = 1 - F.cosine_similarity(own, method.teacher.tokens(batch.views).cls, dim=-1)
    assert method.training_step(batch).loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
