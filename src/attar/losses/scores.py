"""Terms on similarity scores between two sets of vectors (DIME-FM, ICCV 2023), always in float32.

All of them are one divergence (`score_kl`) of different vectors: a softmax over a row of scores, the teacher's against
the student's. No term looks at the diagonal, so that nothing needs to be paired. Vectors are normalised here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ShapeError
from attar.losses.classification import kl_divergence
from attar.losses.features import exact


@dataclass(frozen=True)
class Vectors:
    """Vectors of one kind in a step.

    Attributes:
        own: (B, D), this rank's.
        everyone: (N, D), those of all ranks in their order, with gradient where `own` has one.
    """

    own: Tensor
    everyone: Tensor

    @classmethod
    def alone(cls, own: Tensor) -> Vectors:
        """Of the only rank."""
        return cls(own, own)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """(n, m) cosines of (n, D) with (m, D), in float32 whatever autocast says.

    Scores are cosines times 100 or so, where bfloat16 counts in steps of a half.
    """
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(exact(rows), dim=-1) @ F.normalize(exact(columns), dim=-1).T


def score_kl(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], *, scale: float, temperature: float
) -> Tensor:
    """Divergence of the student's softened scores from the teacher's, row by row.

    KL(teacher || student) of `softmax(scale * cosines / temperature)` over the columns, without a factor of
    temperature squared (spec dime_fm §1.1).

    Args:
        student: Its vectors for the rows (n, D) and for the columns (m, D), any float dtype.
        teacher: The same of the teacher, no gradient wanted; its width may be another.
        scale: Multiplies the cosines of both; must be > 0.
        temperature: Divides the scores of both; must be > 0.

    Returns:
        (n,) float32, 0 where the two agree; at most `2 * scale / temperature + ln(m)`.

    Raises:
        ShapeError: If rows and columns differ in width, or student and teacher in their number.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
        >>> score_kl((student, teacher), (teacher, teacher), scale=1.0, temperature=1.0)
        tensor([0.0000, 0.0697])
    """
    for rows, columns in (student, teacher):
        if rows.shape[-1] != columns.shape[-1]:
            raise ShapeError(
                f"scores of vectors {tuple(rows.shape)} with vectors {tuple(columns.shape)}: widths differ."
                " The student needs a projection to the teacher's width."
            )
    counts = [(len(rows), len(columns)) for rows, columns in (student, teacher)]
    if counts[0] != counts[1]:
        raise ShapeError(
            f"the student's scores are {counts[0]}, the teacher's {counts[1]}. Both need the same images and sentences."
        )
    own, wanted = (scale * cosines(*vectors) for vectors in (student, teacher))
    return kl_divergence(own, wanted, temperature=temperature) / temperature**2


def vision_language(
    images: Vectors,
    texts: Vectors,
    teacher_images: Vectors,
    teacher_texts: Vectors,
    *,
    scale: float = 100.0,
    temperature: float = 1.0,
) -> Tensor:
    """L_vl, this rank's share: scores of images with sentences, from image to text and from text to image.

    The directions are added: one is a mean over images, the other over sentences.

    Args:
        images: The student's.
        texts: The student's; with a frozen text tower the teacher's own.
        teacher_images: Of the same images.
        teacher_texts: Of the same sentences.
        scale: As in `score_kl`.
        temperature: As in `score_kl`.
    """
    to_text = score_kl(
        (images.own, texts.everyone),
        (teacher_images.own, teacher_texts.everyone),
        scale=scale,
        temperature=temperature,
    )
    to_image = score_kl(
        (texts.own, images.everyone),
        (teacher_texts.own, teacher_images.everyone),
        scale=scale,
        temperature=temperature,
    )
    return to_text.sum() / len(images.everyone) + to_image.sum() / len(texts.everyone)


def pseudo_vision_language(
    student: Vectors, teacher: Vectors, *, scale: float = 100.0, temperature: float = 3.0
) -> Tensor:
    """L_p-vl, this rank's share: the teacher's images stand in for sentences, the diagonal among them.

    Twice the one direction, as released. For a text tower that learns, the same of sentences.

    Args:
        student: Images, or sentences.
        teacher: The same ones.
        scale: As in `score_kl`.
        temperature: As in `score_kl`.
    """
    anchors = teacher.everyone
    rows = score_kl((student.own, anchors), (teacher.own, anchors), scale=scale, temperature=temperature)
    return 2 * rows.sum() / len(anchors)


def distance_preserving(
    student: Vectors, teacher: Vectors, *, scale: float = 100.0, temperature: float = 7.0
) -> Tensor:
    """L_udist, this rank's share: scores of images among themselves, on each side of the student and of the teacher.

    Blind to a rotation of the student. Twice the one direction, as released; arguments as `pseudo_vision_language`.
    """
    rows = score_kl(
        (student.own, student.everyone), (teacher.own, teacher.everyone), scale=scale, temperature=temperature
    )
    return 2 * rows.sum() / len(student.everyone)
