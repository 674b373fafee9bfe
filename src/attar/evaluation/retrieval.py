"""Image-text retrieval: recall at k in both directions, with several captions to an image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import DataError, ShapeError
from attar.evaluation.metrics import ranks_of

_TILE = 256  # queries compared at a time


def retrieval_recall(
    images: Tensor, texts: Tensor, image_of_text: Tensor, *, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recall at each k, as `image_to_text@k` and `text_to_image@k`, in [0, 1].

    From image to text it is the share of images one of whose captions is among the k nearest (CLIP_benchmark).

    Args:
        images: (n, E) embeddings of any length.
        texts: (m, E).
        image_of_text: (m,) int64, the image that each caption describes.
        ks: How many are retrieved.

    Raises:
        DataError: If an image has no caption.
        ShapeError: If the shapes do not go together.
    """
    of_images, of_texts = retrieval_ranks(images, texts, image_of_text)
    found = {"image_to_text": of_images, "text_to_image": of_texts}
    return {f"{name}@{k}": (ranks < k).double().mean().item() for name, ranks in found.items() for k in ks}


def retrieval_ranks(images: Tensor, texts: Tensor, image_of_text: Tensor) -> tuple[Tensor, Tensor]:
    """How many stand before the right one: (n,) texts before each image's best caption, (m,) images before each text's.

    Neighbours are ordered by cosine and equals by position, so that embeddings which have collapsed find next to
    nothing. Arguments and errors as in `retrieval_recall`.
    """
    _check(images, texts, image_of_text)
    images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
    everything = torch.arange(len(texts))
    of_texts = _ranks(texts, images, everything, image_of_text)
    before_caption = _ranks(images, texts, image_of_text, everything)  # for each caption, in its image's order
    worst = torch.full((len(images),), len(texts))
    return worst.scatter_reduce(0, image_of_text, before_caption, "amin"), of_texts


def _ranks(queries: Tensor, gallery: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
    """For each pair of a query (by row) and its target how many of the gallery stand before the target."""
    tiles = zip(torch.split(rows, _TILE), torch.split(targets, _TILE), strict=True)
    return torch.cat([ranks_of(queries[tile] @ gallery.T, wanted) for tile, wanted in tiles])


def _check(images: Tensor, texts: Tensor, image_of_text: Tensor) -> None:
    if images.shape[1:] != texts.shape[1:] or image_of_text.shape != texts.shape[:1]:
        shapes = ", ".join(str(tuple(part.shape)) for part in (images, texts, image_of_text))
        raise ShapeError(f"images, texts and image_of_text are {shapes}; they must be (n, E), (m, E) and (m,).")
    if len(image_of_text) and not (image_of_text.min() >= 0 and image_of_text.max() < len(images)):
        raise ShapeError(f"image_of_text goes to {int(image_of_text.max())}; there are {len(images)} images.")
    captions = torch.bincount(image_of_text, minlength=len(images))
    if not captions.all() or not len(images):
        raise DataError(f"{int((captions == 0).sum())} of {len(images)} images have no caption. Leave them out.")
