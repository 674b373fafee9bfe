"""Zero-shot classification: class names in sentences are the classifier (spec evaluation §3; CLIP's notebook)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.errors import ConfigError, ShapeError
from attar.utils.progress import track

EncodeText = Callable[[list[str]], Tensor]
"""From m sentences to (m, E): `TextTower.encode`, or any function like it."""

LOGIT_SCALE = 100.0
"""What CLIP, ELEVATER and CLIP_benchmark multiply cosines by, whatever was learned."""

_NOTHING = 1e-6  # length of a mean of unit vectors that has no direction

_PLACE = re.compile(r"\{c?\}")  # {} as CLIP writes it, {c} as CLIP_benchmark does


@torch.no_grad()
def text_classifier(
    encode_text: EncodeText, class_names: Sequence[str], templates: Sequence[str], *, batch_size: int = 256
) -> Tensor:
    """One unit vector for each class: the mean over templates of its normalised sentences, normalised again.

    The mean is one of embeddings, not of the shares that each template gives.

    Args:
        encode_text: From sentences to embeddings of any length.
        class_names: K names.
        templates: Sentences with a place for the name, `{}` or `{c}`.
        batch_size: Sentences encoded at a time.

    Returns:
        (K, E) float32 on the CPU.

    Raises:
        ConfigError: If there is no name or template, a template has no place for the name, or the mean of a class is
            nothing.
        ShapeError: If `encode_text` gives another number of rows than it was given sentences.

    Example:
        >>> def encode(texts):
        ...     return torch.tensor([[1.0, 0.0] if "photo" in text else [0.0, 1.0] for text in texts])
        >>> text_classifier(encode, ["cat"], ["a photo of a {}.", "a drawing of a {}."])
        tensor([[0.7071, 0.7071]])
    """
    check_prompts(class_names, templates)
    texts = (name.join(_PLACE.split(template)) for name in class_names for template in templates)
    count = len(class_names) * len(templates)
    batches = iter(lambda: list(islice(texts, batch_size)), [])
    encoded, done = torch.empty(0), 0
    for batch in track(batches, "encoding class names", total=-(-count // batch_size), unit="batches"):
        rows = encode_text(batch).cpu().float()
        if len(rows) != len(batch):
            raise ShapeError(
                f"{len(batch)} sentences were encoded as {tuple(rows.shape)}; it must be one row for each."
            )
        if done == 0:
            encoded = torch.zeros(len(class_names), rows.shape[1])
        owner = torch.arange(done, done + len(batch)) // len(templates)
        encoded.index_add_(0, owner, F.normalize(rows, dim=1) / len(templates))
        done += len(batch)
    empty = [name for name, row in zip(class_names, encoded, strict=True) if not row.norm() > _NOTHING]
    if empty:
        raise ConfigError(
            f"the sentences of class '{empty[0]}' cancel each other out, or one is not finite: their mean has no"
            " direction. Give other templates, or other weights."
        )
    return F.normalize(encoded, dim=1)


def zero_shot_logits(features: Tensor, classifier: Tensor, *, scale: float = LOGIT_SCALE) -> Tensor:
    """Cosine of each image with each class, times a scale that no argmax sees but a softmax does.

    Args:
        features: (n, E) image embeddings of any length, projected into the space of the text.
        classifier: (K, E), as `text_classifier` gives it.
        scale: Must be > 0; a tower's own is `TextTower.logit_scale`.

    Returns:
        (n, K) float32.

    Raises:
        ConfigError: If the scale is not positive.
        ShapeError: If the widths differ.
    """
    if not scale > 0:
        raise ConfigError(f"logit scale is {scale}; it must be > 0, or the order of the classes changes.")
    if features.shape[-1] != classifier.shape[-1]:
        raise ShapeError(
            f"image embeddings are {features.shape[-1]} wide and class embeddings {classifier.shape[-1]}."
            " Take both towers of one model, and the image's embedding after its projection."
        )
    return scale * F.normalize(features.float(), dim=1) @ F.normalize(classifier.float(), dim=1).T


def check_prompts(class_names: Sequence[str], templates: Sequence[str]) -> None:
    """Nothing, if names and templates make a classifier.

    Raises:
        ConfigError: If there is no name or template, or a template has no place for the name.
    """
    if not class_names or not templates:
        raise ConfigError(f"{len(class_names)} class names and {len(templates)} templates make no classifier.")
    bare = next((template for template in templates if not _PLACE.search(template)), None)
    if bare is not None:
        raise ConfigError(f"template '{bare}' has no place for the class name. Write {{}} there.")
