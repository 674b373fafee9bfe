"""Logit distillation with labels (Hinton et al. 2015): the baseline whose logits carry a training set's bias.

The loss is (1 - w) * cross-entropy + w * T^2 * KL, as the paper of Proteus compares itself with (spec §4.4). Its w
and T are not known: the form is DeiT's equation 2, the shares are equal. The KL is a mean over images; DeiT's released
code divides it by the number of classes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from attar.config import LogitsConfig
from attar.losses import cross_entropy, kl_divergence
from attar.methods.base import Taught, first_views
from attar.methods.teacher import ask, check_patches, frozen, resize
from attar.methods.teacher_cache import Answers
from attar.models import Backbone, ClassificationHead, LinearClassifier
from attar.types import Batch, StepOutput
from attar.utils.distributed import sum_over_ranks

_ASKED = 512  # views, of all ranks together, on which teacher and labels are compared


class LogitsLearner(nn.Module):
    """Student and a linear classifier on its class token."""

    def __init__(self, student: Backbone, num_classes: int, temperature: float) -> None:
        super().__init__()
        self.student = student
        self.head = ClassificationHead(student.embed_dim, num_classes)
        self.temperature = temperature

    def forward(self, views: Tensor, target: Tensor, labels: Tensor, global_batch_size: int) -> dict[str, Tensor]:
        """Unweighted terms, each as this batch's share of the global mean.

        Args:
            views: (B, 3, H, W).
            target: Teacher logits of the same views, (B, K).
            labels: (B,) int64.
            global_batch_size: Images that the means run over.
        """
        logits = self.head(self.student(views).cls)
        return {
            "labels": cross_entropy(logits, labels).sum() / global_batch_size,
            "logits": kl_divergence(logits, target, temperature=self.temperature).sum() / global_batch_size,
        }


class LogitDistillation(Taught):
    """The method: labels and the teacher's classes, side by side."""

    title = "logit distillation with labels (Hinton et al. 2015)"
    answer_names = ("logits",)

    def __init__(
        self, teacher: Backbone, classifier: LinearClassifier, student: Backbone, config: LogitsConfig
    ) -> None:
        check_patches(student, teacher)
        self.teacher, self.classifier, self.student, self.config = frozen(teacher), classifier, student, config
        self.learner: nn.Module = LogitsLearner(student, classifier.out_features, config.temperature)

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted loss and unweighted terms, as shares of the global batch."""
        assert batch.labels is not None, "a supervised method on a stream without labels"
        (target,) = self.answers(batch)
        views = resize(batch.views, self.student.img_size)
        terms = self.learner(views, target, batch.labels, batch.global_batch_size)
        weight = self.config.teacher_weight
        loss = (1 - weight) * terms["labels"] + weight * terms["logits"]
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    @torch.no_grad()
    def ask(self, views: Tensor) -> Answers:
        """The teacher's logits (B, K)."""
        return (self.classifier.logits(ask(self.teacher, views)),)

    def prepare(self, batches: Iterable[Batch]) -> str:
        """How far the teacher's classifier and the labels agree: a file cannot tell whose classes its rows are."""
        counts = self.classifier.weight.new_zeros(3, self.classifier.out_features)
        for batch in first_views(batches, _ASKED):
            batch = batch.to(counts.device)
            assert batch.labels is not None, "a supervised method on a stream without labels"
            classes = self.ask(batch.views)[0].argmax(1)
            for count, found in zip(counts, (classes[classes == batch.labels], classes, batch.labels), strict=True):
                count += found.bincount(minlength=len(count))
        return _agreement(*sum_over_ranks(counts).double().cpu())


def _agreement(right: Tensor, guessed: Tensor, labelled: Tensor) -> str:
    """The share of agreement in words, from counts by class (K,), and a warning where chance would give as much."""
    views = int(guessed.sum())
    share, chance = float(right.sum()) / views, float(guessed @ labelled) / views**2
    words = f"the teacher's classifier and the labels agree on {share:.1%} of {views:,} views, {chance:.1%} by chance"
    if share <= chance + 2 * math.sqrt(chance * (1 - chance) / views):
        words += (
            "\nthat is no better than chance: are the data's classes in another order than the classifier's, or is it"
            " another teacher's?"
        )
    return words
