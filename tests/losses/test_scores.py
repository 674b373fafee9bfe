"""Terms on similarity scores: oracles 6.1 to 6.3 of spec dime_fm, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from attar.errors import ShapeError
from attar.losses import Vectors, distance_preserving, pseudo_vision_language, score_kl, vision_language

EYE = torch.eye(2, dtype=torch.float64)
STUDENT = torch.tensor([[1, 0], [0.6, 0.8]], dtype=torch.float64)
SOFT = {"vl": 1.0, "pvl": 3.0, "ud": 7.0}
PLAIN = dict.fromkeys(SOFT, 1.0)
NAMES = tuple(SOFT)


def terms(us, ut, vt, vs=None, *, scale=100.0, temperatures=SOFT):
    """(L_vl, L_p-vl, L_udist) of one process; the student's sentences are the teacher's unless given."""
    u, teacher, v, anchors = (Vectors.alone(x) for x in (us, ut, vt if vs is None else vs, vt))
    return torch.stack(
        [
            vision_language(u, v, teacher, anchors, scale=scale, temperature=temperatures["vl"]),
            pseudo_vision_language(u, teacher, scale=scale, temperature=temperatures["pvl"]),
            distance_preserving(u, teacher, scale=scale, temperature=temperatures["ud"]),
        ]
    )


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def rotation(width, seed=1):
    (matrix,) = drawn((width, width), seed=seed)
    return torch.linalg.qr(matrix)[0]


@pytest.mark.parametrize(
    ("scale", "temperatures", "expected"),
    [
        (1.0, PLAIN, (0.0560817255, 0.0697240448, 0.0767774241)),
        (10.0, SOFT, (0.0722753914, 0.2874638157, 0.1343434900)),
        (100.0, SOFT, (1.0306e-9, 1.2718246892e-3, 6.5741933533e-3)),
    ],
)
def test_hand_example(scale, temperatures, expected):
    # catches the reverse KL (.0602 for L_vl of the first row), a mean of the directions (half), a factor of
    # temperature squared (9 for L_p-vl of the second row), a squared distance in place of L_udist
    found = terms(STUDENT, EYE, EYE, scale=scale, temperatures=temperatures)
    assert found[1:].tolist() == pytest.approx(expected[1:], rel=1e-6)
    assert found[0].item() == pytest.approx(expected[0], rel=1e-4 if scale == 100 else 1e-6)  # five digits are given
    low = terms(STUDENT.float(), EYE.float(), EYE.float(), scale=scale, temperatures=temperatures)
    assert low.dtype == torch.float32
    assert low.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_defaults_are_the_released_temperatures():
    u, teacher = Vectors.alone(STUDENT), Vectors.alone(EYE)
    found = [
        vision_language(u, teacher, teacher, teacher),
        pseudo_vision_language(u, teacher),
        distance_preserving(u, teacher),
    ]
    torch.testing.assert_close(torch.stack(found), terms(STUDENT, EYE, EYE))


@pytest.mark.parametrize(
    ("scale", "temperatures", "expected"),
    [
        (1.0, PLAIN, (0.1446675926, 0.1442835674, 0.0856806829)),
        (100.0, SOFT, (23.8937324068, 4.9073904480, 0.0228136343)),
    ],
)
def test_other_numbers_of_images_and_sentences_and_vectors_of_any_length(scale, temperatures, expected):
    # catches division of both directions by the number of images, or scores of vectors as they are
    images = torch.tensor([[2, 0, 0], [0, 3, 4], [1, 0, 1]], dtype=torch.float64)
    sentences = torch.tensor([[1, 1, 0], [0, 0, 5]], dtype=torch.float64)
    found = terms(images, torch.eye(3, dtype=torch.float64), sentences, scale=scale, temperatures=temperatures)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_terms_vanish_at_equality_and_nowhere_else():
    us, ut, vt, vs = drawn((5, 6), (5, 6), (7, 6), (7, 6))
    assert terms(ut, ut, vt).abs().max() < 1e-9
    assert (terms(us, ut, vt, vs) > 0).all()


def test_a_common_rotation_and_lengths_play_no_part():
    us, ut, vt = drawn((5, 6), (5, 6), (7, 6))
    whole = terms(us, ut, vt)
    turn = rotation(6)
    torch.testing.assert_close(terms(us @ turn, ut @ turn, vt @ turn), whole, rtol=1e-9, atol=1e-11)
    longer = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    torch.testing.assert_close(terms(us * longer, ut * 3, vt * 0.2), whole, rtol=1e-9, atol=1e-11)


def test_which_term_ties_the_student_to_the_teachers_frame():
    us, ut, vt, vs = drawn((5, 6), (5, 6), (7, 6), (7, 6))
    turn, names = rotation(6), dict(zip(NAMES, range(3), strict=True))
    frozen, turned = terms(us, ut, vt), terms(us @ turn, ut, vt)
    assert torch.isclose(frozen[names["ud"]], turned[names["ud"]], rtol=1e-9)
    assert not torch.isclose(frozen[:2], turned[:2], rtol=1e-3).any()
    both, turned = terms(us, ut, vt, vs), terms(us @ turn, ut, vt, vs @ turn)
    same = torch.isclose(both, turned, rtol=1e-9)
    assert same.tolist() == [True, False, True]
    null = terms(ut @ turn, ut, vt)  # the null space of L_udist
    assert null[2] < 1e-9
    assert (null[:2] > 1e-3).all()


def test_images_and_sentences_are_not_paired():
    us, ut, vt = drawn((5, 6), (5, 6), (7, 6))
    whole = terms(us, ut, vt)
    images, sentences = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([6, 2, 0, 5, 1, 3, 4])
    torch.testing.assert_close(terms(us[images], ut[images], vt[sentences]), whole)
    assert not torch.isclose(terms(us[images], ut, vt), whole, rtol=1e-3).any()


def test_l_vl_is_blind_to_a_constant_alone():
    # one direction would forgive a constant for each row; equal widths of student and teacher are not needed
    angles = torch.tensor([0.3, 0.8], dtype=torch.float64)
    teacher_texts = torch.stack([angles.cos(), angles.sin(), torch.zeros(2, dtype=torch.float64)], dim=1)
    teacher_images = torch.eye(3, dtype=torch.float64)[:2]
    scores = teacher_images @ teacher_texts.T

    def loss(wanted):
        images = F.normalize(torch.eye(4, dtype=torch.float64)[:2], dim=-1)
        rest = (1 - wanted.square().sum(0)).sqrt()
        texts = torch.cat([wanted.T, torch.stack([rest, torch.zeros(2, dtype=torch.float64)], dim=1)], dim=1)
        return vision_language(*map(Vectors.alone, (images, texts, teacher_images, teacher_texts)), scale=10.0)

    assert loss(scores - 0.2) < 1e-12
    assert loss(scores - torch.tensor([[0.2], [0.1]], dtype=torch.float64)) > 1e-3  # a constant for each image
    assert loss(scores - torch.tensor([0.2, 0.1], dtype=torch.float64)) > 1e-3


def test_bound():
    opposite = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
    rows = score_kl((opposite, EYE), (EYE[:1], EYE), scale=100.0, temperature=3.0)
    assert 2 * 100 / 3 * 0.45 < rows.item() <= 2 * 100 / 3 + math.log(2)


def test_of_one_nothing_can_be_told():
    us, ut, vt = drawn((5, 6), (5, 6), (1, 6))
    images, text, teacher = Vectors.alone(us), Vectors.alone(vt), Vectors.alone(ut)
    to_image = score_kl((vt, us), (vt, ut), scale=100.0, temperature=1.0).sum()
    torch.testing.assert_close(vision_language(images, text, teacher, text), to_image)  # image to text is 0
    assert terms(us[:1], ut[:1], vt)[1:].tolist() == [0, 0]


def test_a_split_batch_is_another_loss():
    us, ut, vt = drawn((8, 6), (8, 6), (8, 6))
    halves = sum(terms(us[part], ut[part], vt[part]) for part in (slice(4), slice(4, 8))) / 2
    assert not torch.isclose(halves, terms(us, ut, vt), rtol=1e-2).any()


def test_shares_of_two_ranks_and_their_gradients_are_those_of_the_whole():
    us, ut, vt, vs = drawn((8, 6), (8, 6), (10, 6), (10, 6))
    us, vs = us.requires_grad_(), vs.requires_grad_()
    whole = terms(us, ut, vt, vs, scale=10.0)
    expected = torch.autograd.grad(whole.sum(), [us, vs])

    def share(number):
        images, sentences = slice(4 * number, 4 * number + 4), slice(5 * number, 5 * number + 5)
        u, teacher = Vectors(us[images], us), Vectors(ut[images], ut)
        v, anchors = Vectors(vs[sentences], vs), Vectors(vt[sentences], vt)
        return torch.stack(
            [
                vision_language(u, v, teacher, anchors, scale=10.0),
                pseudo_vision_language(u, teacher, scale=10.0),
                distance_preserving(u, teacher, scale=10.0),
            ]
        )

    both = share(0) + share(1)
    torch.testing.assert_close(both, whole)
    torch.testing.assert_close(torch.autograd.grad(both.sum(), [us, vs]), expected)


def test_gradient_of_scores_is_the_difference_of_the_softmaxes():
    # (q - p) / temperature for a row: catches a detached student, or a softmax over the wrong dimension
    us, columns, ut = drawn((3, 6), (4, 6), (3, 6))
    angles = F.normalize(us, dim=-1).requires_grad_()
    rows = score_kl((angles, columns), (ut, columns), scale=10.0, temperature=3.0)
    (found,) = torch.autograd.grad(rows.sum(), angles)
    unit = F.normalize(columns, dim=-1)
    q, p = ((10 * F.normalize(x, dim=-1) @ unit.T / 3).softmax(1) for x in (angles.detach(), ut))
    free = 10 * (q - p) / 3 @ unit
    along = (free * angles.detach()).sum(1, keepdim=True) * angles.detach()  # the normalisation takes this part away
    torch.testing.assert_close(found, free - along)
    assert torch.autograd.gradcheck(
        lambda u: terms(u, *drawn((3, 6), (4, 6), seed=3), scale=5.0), us.requires_grad_(), eps=1e-6
    )


def test_soft_cross_entropy_differs_by_the_teachers_entropy():
    us, ut, vt = drawn((5, 6), (5, 6), (7, 6))
    logits, wanted = (F.normalize(x, dim=-1) @ F.normalize(vt, dim=-1).T * 20 for x in (us, ut))
    p = wanted.softmax(1)
    entropy = -(p * p.log()).sum(1)
    crossed = F.cross_entropy(logits, p, reduction="none")
    torch.testing.assert_close(score_kl((us, vt), (ut, vt), scale=20.0, temperature=1.0), crossed - entropy)


def test_scores_are_exact_under_autocast():
    # in bfloat16 a score near 100 is wrong by a quarter, and its softmax by as much
    us, ut, vt = (x.float() for x in drawn((5, 6), (5, 6), (7, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        found = terms(us, ut, vt)
    torch.testing.assert_close(found, terms(us, ut, vt), rtol=0, atol=0)


def test_vectors_that_do_not_meet_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 3\) with vectors \(2, 4\).*needs a projection"):
        score_kl((torch.zeros(2, 3), torch.zeros(2, 4)), (EYE, EYE), scale=1.0, temperature=1.0)
    with pytest.raises(ShapeError, match=r"student's scores are \(2, 2\), the teacher's \(1, 2\)"):
        score_kl((STUDENT, EYE), (EYE[:1], EYE), scale=1.0, temperature=1.0)
