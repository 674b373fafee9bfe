"""Retrieval: a plain count of the nearest, several captions to an image, and embeddings that have collapsed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attar.errors import DataError, ShapeError
from attar.evaluation.retrieval import retrieval_ranks, retrieval_recall


def drawn(seed: int, *, images: int = 12, captions: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images and captions that lie somewhere near them, in no order."""
    generator = torch.Generator().manual_seed(seed)
    image_of_text = torch.arange(images).repeat(captions)[torch.randperm(images * captions, generator=generator)]
    centres = torch.randn(images, 6, generator=generator)
    texts = centres[image_of_text] + 0.8 * torch.randn(len(image_of_text), 6, generator=generator)
    return centres, texts, image_of_text


def test_by_hand() -> None:
    """The second image's nearest text is the first's, its own comes next; each text finds its image but the last."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.1, 1.0], [1.0, 0.0], [0.2, 1.0]])
    found = retrieval_recall(images, texts, torch.tensor([0, 0, 1]), ks=(1, 2))
    assert found["image_to_text@1"] == 0.5
    assert found["image_to_text@2"] == 1.0
    assert found["text_to_image@1"] == pytest.approx(2 / 3)
    assert found["text_to_image@2"] == 1.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 10]))
def test_a_plain_count_says_the_same(seed: int, k: int) -> None:
    """Counted by captions found instead of images that find one, image to text would be lower."""
    images, texts, image_of_text = drawn(seed)
    cosine = torch.cosine_similarity(images[:, None], texts[None], dim=2)
    nearest_texts, nearest_images = cosine.topk(k, dim=1).indices, cosine.T.topk(k, dim=1).indices
    found = retrieval_recall(images, texts, image_of_text)
    own = [(image_of_text[row] == number).any().item() for number, row in enumerate(nearest_texts)]
    assert found[f"image_to_text@{k}"] == pytest.approx(sum(own) / len(own))
    own = (nearest_images == image_of_text[:, None]).any(1).double()
    assert found[f"text_to_image@{k}"] == pytest.approx(own.mean().item())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_order_and_length_do_not_matter(seed: int) -> None:
    images, texts, image_of_text = drawn(seed)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    expected = retrieval_recall(images, texts, image_of_text)
    assert retrieval_recall(3 * images, texts[order] / 7, image_of_text[order]) == pytest.approx(expected)


def test_tiles_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = retrieval_ranks(*drawn(0))
    monkeypatch.setattr("attar.evaluation.retrieval._TILE", 5)
    for part, expected in zip(retrieval_ranks(*drawn(0)), whole, strict=True):
        assert torch.equal(part, expected)


def test_embeddings_that_have_collapsed_find_next_to_nothing() -> None:
    """A count of strictly nearer ones would call every search a success."""
    found = retrieval_recall(torch.ones(50, 4), torch.ones(50, 4), torch.arange(50))
    assert found["image_to_text@1"] == found["text_to_image@1"] == 1 / 50
    assert found["image_to_text@10"] == 10 / 50


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 images have no caption"):
        retrieval_recall(torch.ones(2, 4), torch.ones(1, 4), torch.tensor([0]))
    with pytest.raises(ShapeError, match=r"they must be \(n, E\), \(m, E\) and \(m,\)"):
        retrieval_recall(torch.ones(2, 4), torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ShapeError, match="image_of_text goes to 2; there are 2 images"):
        retrieval_recall(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 2]))
