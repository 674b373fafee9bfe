"""InfoNCE between two sides of the same images, always in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.scores import cosines


def info_nce(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float,
    all_students: Tensor | None = None,
    all_teachers: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Symmetric InfoNCE: each image finds its own vector among those of all images, from either side.

    Args:
        student: (B, D), any float dtype.
        teacher: (B, D), with gradient where it is another student's: captions of the images, say.
        temperature: Divides cosines; must be > 0.
        all_students: (N, D) of all ranks, with gradient; by default the batch's own.
        all_teachers: (N, D) of all ranks.
        first: Where this batch's rows begin among all.

    Returns:
        (B,) float32, the mean of both directions. Summed over ranks and divided by N it is the loss of the whole batch.

    Raises:
        ShapeError: If the two sides differ in shape.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
        >>> round(info_nce(student, teacher, temperature=0.1).mean().item(), 4)
        0.0364
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student features are {tuple(student.shape)} but teacher features are {tuple(teacher.shape)}."
            " A projector must bring the student to the teacher's width."
        )
    all_students = student if all_students is None else all_students
    all_teachers = teacher if all_teachers is None else all_teachers
    own = torch.arange(first, first + len(student), device=student.device)
    to_teacher = F.cross_entropy(cosines(student, all_teachers) / temperature, own, reduction="none")
    to_student = F.cross_entropy(cosines(teacher, all_students) / temperature, own, reduction="none")
    return (to_teacher + to_student) / 2
