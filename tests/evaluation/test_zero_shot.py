"""Zero-shot classifiers: the worked example of spec evaluation §6.9, open_clip's own, and what must not matter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import ConfigError, ShapeError
from attar.evaluation.metrics import METRICS
from attar.evaluation.zero_shot import text_classifier, zero_shot_logits

NAMES = ["cat", "dog", "red {panda}"]
TEMPLATES = ["a photo of a {}.", "a drawing of a {}, a kind of pet.", "art of the {}."]


def hashed(texts: list[str]) -> Tensor:
    """A text encoder: each sentence its own vector, of a length that depends on the sentence."""
    rows = [torch.randn(8, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return torch.stack([row * len(text) for row, text in zip(rows, texts, strict=True)])


def test_the_worked_example() -> None:
    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([[5.0, 0.0] if "photo" in text else [0.0, 0.1] for text in texts])

    found = text_classifier(encode, ["cat"], ["a photo of a {}.", "a drawing of a {}."])
    torch.testing.assert_close(found, torch.tensor([[0.7071068, 0.7071068]]))


def test_each_sentence_is_normalised_before_the_mean_and_the_mean_after() -> None:
    """A mean of raw embeddings would lean to long sentences; a mean left as it is would favour agreeing templates."""
    found = text_classifier(hashed, NAMES, TEMPLATES)
    for name, row in zip(NAMES, found, strict=True):
        sentences = F.normalize(hashed([template.replace("{}", name) for template in TEMPLATES]), dim=1)
        torch.testing.assert_close(row, F.normalize(sentences.mean(0), dim=0))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9, 100])
def test_batches_may_end_within_a_class(batch_size: int) -> None:
    asked: list[int] = []

    def encode(texts: list[str]) -> Tensor:
        asked.append(len(texts))
        return hashed(texts)

    found = text_classifier(encode, NAMES, TEMPLATES, batch_size=batch_size)
    torch.testing.assert_close(found, text_classifier(hashed, NAMES, TEMPLATES))
    assert max(asked) <= batch_size
    assert sum(asked) == 9


@settings(max_examples=20, deadline=None)
@given(st.permutations(TEMPLATES))
def test_the_order_of_templates_does_not_matter(templates: list[str]) -> None:
    torch.testing.assert_close(text_classifier(hashed, NAMES, templates), text_classifier(hashed, NAMES, TEMPLATES))


def test_the_place_for_the_name_is_written_in_two_ways() -> None:
    assert torch.equal(text_classifier(hashed, NAMES, ["a {c}."]), text_classifier(hashed, NAMES, ["a {}."]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 1000), st.floats(0.01, 1000))
def test_neither_scale_nor_length_changes_the_class(seed: int, scale: float, length: float) -> None:
    features, classifier = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(seed))
    logits = zero_shot_logits(features, classifier[:5])
    scaled = zero_shot_logits(features * length, classifier[:5], scale=scale)
    torch.testing.assert_close(scaled / scale, logits / 100, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits.argmax(1), F.cosine_similarity(features[:, None], classifier[:5], dim=2).argmax(1))


def test_the_scale_changes_what_a_softmax_makes_of_several_labels() -> None:
    """Spec evaluation §0 trap 6: with a softmax before it, mAP depends on the scale; without, it does not."""
    features, classifier = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(3))
    targets = (torch.rand(40, 5, generator=torch.Generator().manual_seed(4)) < 0.3).long()
    one, other = (zero_shot_logits(features, classifier[:5], scale=scale) for scale in (100.0, 5.0))
    assert METRICS["map11"](one, targets) == pytest.approx(METRICS["map11"](other, targets))
    assert METRICS["map11_softmax"](one, targets) != pytest.approx(METRICS["map11_softmax"](other, targets))


def test_what_makes_no_classifier_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 class names and 0 templates"):
        text_classifier(hashed, NAMES, [])
    with pytest.raises(ConfigError, match=r"template 'a photo.' has no place for the class name. Write {} there"):
        text_classifier(hashed, NAMES, ["a photo."])
    with pytest.raises(ShapeError, match="9 sentences were encoded as"):
        text_classifier(lambda texts: torch.ones(1, 4), NAMES, TEMPLATES)
    with pytest.raises(ShapeError, match="image embeddings are 4 wide and class embeddings 8"):
        zero_shot_logits(torch.ones(2, 4), torch.ones(3, 8))
    with pytest.raises(ConfigError, match="logit scale is 0"):
        zero_shot_logits(torch.ones(2, 4), torch.ones(3, 4), scale=0)


def test_class_vectors_have_length_1_and_one_template_is_the_plain_encoding() -> None:
    # oracle 6.7 of spec dime_fm
    found = text_classifier(hashed, NAMES, TEMPLATES)
    assert found.norm(dim=1) == pytest.approx(torch.ones(3), abs=1e-6)
    alone = text_classifier(hashed, ["cat"], ["a photo of a {}."])
    torch.testing.assert_close(alone, F.normalize(hashed(["a photo of a cat."]), dim=1))


@pytest.mark.parametrize("length", [1.0, float("nan")])
def test_sentences_that_cancel_out_are_no_class(length: float) -> None:
    # oracle 6.7: NaN, or a class that every image is equally near to
    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([[length, 0.0] if "photo" in text else [-length, 0.0] for text in texts])

    with pytest.raises(ConfigError, match="class 'cat' cancel"):
        text_classifier(encode, ["cat"], ["a photo of a {}.", "a drawing of a {}."])
