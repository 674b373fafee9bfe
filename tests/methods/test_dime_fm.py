"""DIME-FM: weights and terms, unpaired streams, steps that are encoded in pieces, and what is refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from attar.config import WITH_REGULARISER, DimeFmConfig
from attar.data.sentence_stream import Sentences, SentenceStream
from attar.errors import ConfigError, ShapeError
from attar.methods import DimeFm, online_targets, stored_targets
from attar.methods.teacher import ask_embedding
from attar.models import with_projection
from attar.types import Batch
from small_models import TINY, WIDE, backbone, batch_of, sentences, text_tower

E = 24
RELEASED = DimeFmConfig()
SMALL = DimeFmConfig(udist_weight=0.1, text_mode="small_student")
EVERYTHING = SMALL.replace(feature_weight=3.0, contrastive_weight=0.2)
ALL = pytest.mark.parametrize("config", [RELEASED, WITH_REGULARISER, SMALL, EVERYTHING])


def tower(reference=TINY, *, seed=0, width=E, img_size=32):
    return with_projection(backbone(reference, seed=seed, img_size=img_size), width, seed=seed)


def method_of(config=RELEASED, *, student=TINY, teacher=None, pieces=1, img_size=32, dtype=torch.float32):
    """The method with everything that its config asks for; ten sentences a step."""
    return DimeFm(
        online_targets(teacher or tower(WIDE, seed=7).to(dtype), pieces=pieces),
        SentenceStream(sentences(dtype=dtype), 10, seed=5),
        tower(student, img_size=img_size).to(dtype),
        config,
        text=text_tower().to(dtype) if config.text_mode == "small_student" else None,
        captions=sentences(64, seed=9, dtype=dtype) if config.contrastive_weight else None,
        pieces=pieces,
    )


def stepped(method, batch):
    """(loss, terms, gradients) of a step."""
    method.learner.zero_grad()
    output = method.training_step(batch)
    output.loss.backward()
    return output.loss.detach(), output.terms, {n: p.grad.clone() for n, p in method.learner.named_parameters()}


def stored(us, vs, ut, vt, config):
    """The method where the student's vectors are given: its tower is replaced by a table."""
    method = DimeFm(
        stored_targets(ut),
        SentenceStream(Sentences(vt), len(vt), seed=0),
        tower(width=ut.shape[1]),
        config,
        captions=Sentences(vs) if config.contrastive_weight else None,
    )
    method.learner.student.forward_embed = lambda views: us
    rows = torch.arange(len(us))
    batch = Batch(torch.rand(len(us), 3, 32, 32), rows, rows, rows, 0, len(us))
    return method.training_step(batch)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (RELEASED, 18.1978298191),
        (WITH_REGULARISER, 17.3296452985),
        (RELEASED.replace(pvl_weight=0), 0.7 * 23.8937324068),
    ],
)
def test_weights_are_the_released_ones_and_the_preset_has_all_three(config, expected):
    # oracle 6.2 of the spec, the stream of sentences shuffled: they are not paired with images
    us = torch.tensor([[2, 0, 0], [0, 3, 4], [1, 0, 1]], dtype=torch.float64)
    vt = torch.tensor([[1, 1, 0], [0, 0, 5]], dtype=torch.float64)
    output = stored(us, vt, torch.eye(3, dtype=torch.float64), vt, config)
    assert output.loss.item() == pytest.approx(expected, rel=1e-6)
    assert set(output.terms) == {name for name in ("vl", "pvl", "udist") if getattr(config, f"{name}_weight")}


def test_terms_that_are_not_the_papers():
    # feature: squared difference of unit vectors, a mean over channels; contrastive: the image's own caption, both ways
    us, ut = torch.tensor([[3.0, 0], [0.6, 0.8]]).double(), torch.eye(2).double()
    config = DimeFmConfig(vl_weight=0, pvl_weight=0, feature_weight=2.0, contrastive_weight=0.5, scale=10.0)
    output = stored(us, ut, ut, ut, config)
    assert output.terms["feature"].item() == pytest.approx((0.6**2 + 0.2**2) / 2 / 2)
    scores = 10 * F.normalize(us, dim=-1) @ ut.T
    own = torch.arange(2)
    both = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    assert output.terms["contrastive"].item() == pytest.approx(both.item(), rel=1e-6)
    assert output.loss.item() == pytest.approx(2 * 0.1 + 0.5 * both.item(), rel=1e-6)


def test_a_text_tower_that_learns_has_terms_of_its_own():
    # catches terms of sentences that are left out, or weighed otherwise than those of images
    loss, terms, _ = stepped(method_of(EVERYTHING), batch_of(6))
    alike = ("pvl", "udist", "feature")
    assert set(terms) == {"vl", "contrastive", *alike, *(f"{name}_text" for name in alike)}
    weights = {name: getattr(EVERYTHING, f"{name.removesuffix('_text')}_weight") for name in terms}
    assert loss.item() == pytest.approx(sum(weights[name] * value.item() for name, value in terms.items()), rel=1e-5)


def test_a_text_tower_that_says_what_the_teacher_says_costs_nothing():
    method = method_of(EVERYTHING)
    batch = batch_of(6)
    for store in (method.sentences.sentences, method.captions):
        with torch.no_grad():
            store._features = method.learner.text(store._tokens)
    terms = method.training_step(batch).terms
    assert all(terms[f"{name}_text"].abs() < 1e-5 for name in ("pvl", "udist", "feature"))
    assert terms["vl"] > 1e-3


@pytest.mark.parametrize("mode", ["frozen_teacher", "small_student"])
def test_a_weight_of_zero_leaves_the_work_out_too(mode):
    method = method_of(DimeFmConfig(vl_weight=0, pvl_weight=0, contrastive_weight=1.0, text_mode=mode))
    method.targets = method.sentences = None  # so that to ask them is an error
    encoded = []
    if method.learner.text is not None:
        method.learner.text.register_forward_pre_hook(lambda _, tokens: encoded.append(len(tokens[0])))
    assert set(method.training_step(batch_of(6)).terms) == {"contrastive"}
    assert encoded == ([6] if mode == "small_student" else [])


def test_sentences_that_nobody_compares_with_are_not_drawn():
    method = method_of(RELEASED.replace(vl_weight=0))
    method.sentences = None
    assert set(method.training_step(batch_of(6)).terms) == {"pvl"}


@ALL
def test_every_parameter_that_learns_gets_a_gradient_and_the_teacher_none(config):
    teacher = tower(WIDE, seed=7)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    _, terms, gradients = stepped(method_of(config, teacher=teacher), batch_of(6))
    assert {name for name, grad in gradients.items() if not grad.any()} == set()
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)
    assert not any(value.requires_grad for value in terms.values())
    learns_text = config.text_mode == "small_student"
    assert any(name.startswith("text.") for name in gradients) == learns_text


@ALL
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_four_pieces_are_one_batch(config, dtype, tolerance):
    # check (e): a loss of each piece for itself is another one (see below); dropped features have no gradient
    found = []
    for pieces in (1, 4):
        batch = batch_of(8)
        method = method_of(config, pieces=pieces, dtype=dtype)
        found.append(stepped(method, replace(batch, views=batch.views.to(dtype))))
    (loss, _, gradients), (other, _, in_pieces) = found
    assert other.item() == pytest.approx(loss.item(), rel=tolerance)
    for name, gradient in gradients.items():
        assert (in_pieces[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name


def test_what_is_drawn_in_a_piece_is_the_same_when_it_is_encoded_again():
    # stochastic depth: without the same draw the gradient would be that of another network than the loss
    method = method_of(student=TINY + "&drop_path_rate=0.5", pieces=2, dtype=torch.float64)
    method.learner.train()
    batch = replace(batch_of(8), views=batch_of(8).views.double())
    weight = method.learner.student.model.visual.trunk.blocks[1].mlp.fc2.weight

    def loss():
        torch.manual_seed(0)
        return method.training_step(batch).loss

    with torch.random.fork_rng():
        (gradient,) = torch.autograd.grad(loss(), weight)
        direction = torch.randn_like(weight)
        with torch.no_grad():
            weight += 1e-6 * direction
            higher = loss()
            weight -= 2e-6 * direction
            lower = loss()
    assert ((higher - lower) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_a_part_of_a_step_is_no_step():
    with pytest.raises(AssertionError, match="4 of 8 images: the step is split"):
        method_of().training_step(batch_of(4, total=8))


def test_targets_stored_by_image_and_asked_of_the_views():
    teacher, batch = tower(WIDE, seed=7), replace(batch_of(6), samples=torch.tensor([5, 0, 3, 3, 1, 2]))
    asked = online_targets(teacher, pieces=2)(batch)
    torch.testing.assert_close(asked, teacher.embed(batch.views))
    kept = torch.randn(6, E, dtype=torch.float16)
    for features in (kept, kept.numpy()):
        assert torch.equal(stored_targets(features)(batch), kept[batch.samples].float())
    wide = torch.full((1, 3, 48, 48), 1.9)  # erasing leaves [0, 1], and a view may be of another size
    assert ask_embedding(teacher, wide).shape == (1, E)


def test_sentences_of_a_step_depend_on_the_step_alone():
    # a resume goes on with the same sentences, and two epochs of images do not meet the same ones
    method, batch = method_of(), batch_of(6)
    first, again = (method.training_step(batch).loss for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.isclose(method.training_step(replace(batch, step=1)).loss, first)


@pytest.mark.parametrize("student", [TINY, "test_convnext", "resnet10t"])
def test_ten_steps_on_one_batch_lower_the_loss(student):
    config = EVERYTHING if student == TINY else RELEASED
    method, batch = method_of(config, student=student), batch_of(6)
    method.learner.train()
    optimizer = torch.optim.AdamW(method.learner.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(11):
        losses.append(stepped(method, batch)[0].item())
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


@ALL
def test_losses_are_float32_under_bf16(config):
    method, batch = method_of(config), batch_of(6)
    with torch.no_grad():
        exact = method.training_step(batch)
        with torch.autocast("cpu", torch.bfloat16):
            output = method.training_step(batch)
    assert {output.loss.dtype, *(value.dtype for value in output.terms.values())} == {torch.float32}
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)  # at a scale of 100


def test_teacher_and_student_see_the_view_at_their_own_sizes():
    method = method_of(img_size=16)
    assert method.training_step(batch_of(4, img_size=32)).loss.isfinite()
    with pytest.raises(ShapeError, match=r"leave a rest of 6 px\. Try --img-size 32"):
        method_of(img_size=30)


@pytest.mark.parametrize(
    ("config", "parts", "message"),
    [
        (
            RELEASED,
            {"text": text_tower()},
            "text_mode is frozen_teacher, and a text tower to learn is given. Leave it out",
        ),
        (SMALL, {}, "text_mode is small_student, and no text tower to learn is given. Give one"),
        (SMALL, {"text": text_tower()}, "a text tower learns from token numbers, and the sentences have none"),
        (RELEASED, {"captions": sentences()}, "contrastive_weight is 0, and captions of the images are given"),
        (EVERYTHING, {"text": text_tower()}, "contrastive_weight is 0.2, and captions of the images are not given"),
    ],
)
def test_parts_that_do_not_go_with_the_config_are_refused(config, parts, message):
    stream = SentenceStream(sentences(tokens=False), 4, seed=0)
    with pytest.raises(ConfigError) as caught:
        DimeFm(stored_targets(torch.zeros(4, E)), stream, tower(), config, **parts)
    assert message in str(caught.value)


def test_pieces_and_batch_norms_do_not_go_together():
    # their statistics would be those of a piece, and counted twice
    method_of(student="resnet10t", img_size=64)
    with pytest.raises(ConfigError, match="batch norms"):
        method_of(student="resnet10t", img_size=64, pieces=2)


def test_widths_that_differ_are_named():
    with pytest.raises(ShapeError, match=r"teacher's sentences 16.*projection to the teacher's"):
        DimeFm(stored_targets(torch.zeros(4, 16)), SentenceStream(sentences(width=16), 4, seed=0), tower(), RELEASED)


def test_nothing_to_learn_is_refused():
    with pytest.raises(ConfigError, match="all weights of DIME-FM are 0"):
        DimeFmConfig(vl_weight=0, pvl_weight=0)
