"""DIME-FM: a small CLIP from unpaired images and sentences (ICCV 2023, arXiv 2303.18232).

Images and sentences are drawn apart, each in batches of their own size. The student learns the teacher's scores of all
images of the step with all of its sentences, of images with the teacher's own images, and of images among themselves;
`attar.losses.scores` has the terms, from the released code. No pair is needed, and with stored features no teacher.

Scores span the whole step on all ranks, so that pieces of a step are no steps of their own: the learner takes the step
at once, and to fit in memory encodes it in pieces, each a second time when its gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from attar.config import DimeFmConfig
from attar.data.sentence_stream import Sentences, SentenceStream, Texts, rows_of
from attar.errors import ConfigError, ShapeError
from attar.losses import (
    Vectors,
    distance_preserving,
    info_nce,
    pseudo_vision_language,
    token_distance,
    vision_language,
)
from attar.losses.features import exact
from attar.methods.base import Method
from attar.methods.teacher import ask_embedding, check_patches, frozen, resize
from attar.methods.teacher_cache import TeacherCache
from attar.models import Backbone, TextTower
from attar.types import Batch, StepOutput
from attar.utils.distributed import gather_rows, rank, world_size

ImageTargets = Callable[[Batch], Tensor]
"""Teacher's image features (B, E) of a batch: asked online, or read by `batch.samples` where they are stored."""


def online_targets(teacher: Backbone, *, pieces: int = 1) -> ImageTargets:
    """Features of the very views that the student sees (`matched`), from a teacher that runs beside it.

    Args:
        teacher: Frozen from here on.
        pieces: In how many parts it encodes a batch.
    """
    teacher = frozen(teacher)
    return lambda batch: torch.cat([ask_embedding(teacher, views) for views in batch.views.chunk(pieces)])


def cached_targets(cache: TeacherCache, ask: ImageTargets) -> ImageTargets:
    """Features of the views that the student sees, asked for once for each of an image's K views (`matched`)."""

    def targets(batch: Batch) -> Tensor:
        (found,) = cache(batch, lambda views: (ask(replace(batch, views=views)),))  # it looks at nothing else
        return found

    return targets


def stored_targets(features: Any) -> ImageTargets:
    """One feature an image (`fixed`, as released), whatever the student sees of it.

    Args:
        features: (n, E) in the order of the index: an array, a memory-mapped one, or a tensor.
    """
    return lambda batch: rows_of(features, batch.samples.numpy())


class DimeFmLearner(nn.Module):
    """The student's image tower, and its text tower where one learns. One forward encodes all and returns the terms."""

    def __init__(self, student: Backbone, text: TextTower | None, config: DimeFmConfig, *, pieces: int) -> None:
        super().__init__()
        self.student, self.text = student, text
        self.config, self.pieces = config, pieces

    def forward(
        self, views: Tensor, target: Tensor | None, texts: Texts | None, captions: Texts | None
    ) -> dict[str, Tensor]:
        """Unweighted terms, each as this rank's share of the whole step's.

        Args:
            views: (B, 3, H, W), this rank's.
            target: Teacher's features of the images, (B, E); None where no term asks for them.
            texts: Sentences of the step, this rank's; None where no term asks for them.
            captions: Those of the images, in their order; None without the contrastive term.
        """
        images = _gathered(self._encode(self.student.forward_embed, views))
        teacher_images = None if target is None else _gathered(target)
        teacher_texts = None if texts is None else _gathered(texts.features)
        sentences, described = self._sentences(texts, captions)
        config = self.config
        terms: dict[str, Tensor] = {}
        if config.vl_weight:
            assert sentences is not None
            assert teacher_images is not None
            assert teacher_texts is not None
            terms["vl"] = vision_language(
                images,
                sentences,
                teacher_images,
                teacher_texts,
                scale=config.scale,
                temperature=config.vl_temperature,
            )
        if teacher_images is not None:
            terms |= self._alike(images, teacher_images)
        if self.text is not None and sentences is not None and teacher_texts is not None:
            terms |= {f"{name}_text": value for name, value in self._alike(sentences, teacher_texts).items()}
        if described is not None:
            terms["contrastive"] = _contrastive(images, described, scale=config.scale)
        return terms

    def _sentences(self, *kinds: Texts | None) -> list[Vectors | None]:
        """The student's vectors of each kind of text: the teacher's own, or of one pass through its text tower."""
        given = [texts for texts in kinds if texts is not None]
        if self.text is None or not given:
            found = [texts.features for texts in given]
        else:
            tokens = [texts.tokens for texts in given if texts.tokens is not None]
            assert len(tokens) == len(given), "a text tower learns from sentences without tokens"
            encoded = self._encode(self.text, torch.cat(tokens))
            found = list(torch.split(encoded, [len(part) for part in tokens]))
        vectors = map(_gathered, found)
        return [None if texts is None else next(vectors) for texts in kinds]

    def _alike(self, student: Vectors, teacher: Vectors) -> dict[str, Tensor]:
        """Terms that look at one kind alone, images or sentences."""
        config, terms = self.config, {}
        if config.pvl_weight:
            terms["pvl"] = pseudo_vision_language(
                student, teacher, scale=config.scale, temperature=config.pvl_temperature
            )
        if config.udist_weight:
            terms["udist"] = distance_preserving(
                student, teacher, scale=config.scale, temperature=config.udist_temperature
            )
        if config.feature_weight:
            own, wanted = (F.normalize(exact(side.own), dim=-1) for side in (student, teacher))
            terms["feature"] = token_distance(own, wanted).sum() / len(student.everyone)
        return terms

    def _encode(self, encode: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Vectors of inputs in pieces. Of several pieces no activations stay: the backward pass makes them again."""
        if self.pieces == 1:
            return encode(inputs)
        return torch.cat([checkpoint(encode, piece, use_reentrant=False) for piece in inputs.chunk(self.pieces)])


class DimeFm(Method):
    """The method: draws the step's sentences, asks for the teacher's features of its images, weighs the terms.

    Args:
        targets: Teacher's image features of a batch.
        sentences: Teacher's text features, and tokens where a text tower learns.
        student: Whose `embed` has the teacher's width (`attar.models.projection`).
        config: Objectives.
        text: The text tower that learns, in mode `small_student`.
        captions: One for each image in the order of the index, with a contrastive term.
        pieces: In how many parts the learner encodes its share of a step. Changes no result; it saves memory for a
            second forward pass, and the step must come as one batch.

    Raises:
        ConfigError: If a part that the config needs is not there, one is of no use, or pieces meet batch norms.
        ShapeError: If widths do not agree, or patches leave a rest.
    """

    title = "DIME-FM (ICCV 2023)"

    def __init__(
        self,
        targets: ImageTargets,
        sentences: SentenceStream,
        student: Backbone,
        config: DimeFmConfig,
        *,
        text: TextTower | None = None,
        captions: Sentences | None = None,
        pieces: int = 1,
    ) -> None:
        check_patches(student)
        _check_parts(sentences.sentences, config, text, captions)
        check_pieces(student, pieces)
        _check_widths(sentences.sentences, student, text, captions)
        self.targets, self.sentences, self.student = targets, sentences, student
        self.config, self.captions = config, captions
        self.learner: nn.Module = DimeFmLearner(student, text, config, pieces=pieces)

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted loss and unweighted terms, as shares of the step, which must come in one piece."""
        whole = len(batch.samples) * world_size()
        assert whole == batch.global_batch_size, f"{whole} of {batch.global_batch_size} images: the step is split"
        device = batch.views.device
        texts = target = captions = None
        if self.config.asks_of_sentences:
            texts = self.sentences.at(batch.step, rank=rank(), world_size=world_size()).to(device)
        if self.captions is not None:
            captions = self.captions.rows(batch.samples.numpy()).to(device)
        if self.config.asks_of_images:
            with torch.no_grad():
                target = self.targets(batch).to(device)
        terms = self.learner(resize(batch.views, self.student.img_size), target, texts, captions)
        loss = sum((self._weight(name) * value for name, value in terms.items()), torch.zeros((), device=device))
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    def _weight(self, term: str) -> float:
        """Of a term by name; sentences count as images do."""
        weight: float = getattr(self.config, f"{term.removesuffix('_text')}_weight")
        return weight


def _gathered(own: Tensor) -> Vectors:
    own = exact(own)
    return Vectors(own, gather_rows(own))


def _contrastive(images: Vectors, captions: Vectors, *, scale: float) -> Tensor:
    loss = info_nce(
        images.own,
        captions.own,
        temperature=1 / scale,
        all_students=images.everyone,
        all_teachers=captions.everyone,
        first=rank() * len(images.own),
    )
    return loss.sum() / len(images.everyone)


def _check_parts(
    sentences: Sentences, config: DimeFmConfig, text: TextTower | None, captions: Sentences | None
) -> None:
    """Each part that the config asks for is there, and no other."""
    learns = config.text_mode == "small_student"
    if learns != (text is not None):
        raise ConfigError(
            f"text_mode is {config.text_mode}, and {'no' if learns else 'a'} text tower to learn is given."
            f" {'Give one' if learns else 'Leave it out'}, or set text_mode to"
            f" {'frozen_teacher' if learns else 'small_student'}."
        )
    if bool(config.contrastive_weight) != (captions is not None):
        raise ConfigError(
            f"contrastive_weight is {config.contrastive_weight:g}, and captions of the images are"
            f" {'not ' if captions is None else ''}given. The two go together."
        )
    if learns and not all(part.has_tokens for part in (sentences, captions) if part is not None):
        raise ConfigError(
            "a text tower learns from token numbers, and the sentences have none. Store them with tokens."
        )


def check_pieces(student: Backbone, pieces: int) -> None:
    """Refuse pieces for a student with batch norms: they see a piece and not the step, and would count it twice.

    Raises:
        ConfigError: If it has any.
    """
    if pieces > 1 and any(isinstance(module, _BatchNorm) for module in student.modules()):
        raise ConfigError(
            f"a step in {pieces} pieces (optim.accumulate) is another one for {student.source.name}, which has batch"
            " norms. Set it to 1 with a smaller --batch-size, or choose a student without (a ViT, ConvNeXt, Swin)."
        )


def _check_widths(sentences: Sentences, student: Backbone, text: TextTower | None, captions: Sentences | None) -> None:
    """All vectors have the teacher's width: scores need it."""
    width = student.embed(torch.full((1, 3, student.img_size, student.img_size), 0.5)).shape[-1]
    widths = {f"images of {student.source.name}": width, "the teacher's sentences": sentences.embed_dim}
    if text is not None:
        widths["sentences of the student's text tower"] = text.embed_dim
    if captions is not None:
        widths["the teacher's captions"] = captions.embed_dim
    if len(set(widths.values())) > 1:
        said = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ShapeError(
            f"vectors differ in width ({said}). The student needs a projection to the teacher's"
            " (attar.models.projection), and all features the same teacher."
        )
