"""Proteus: a general backbone from a foundation model and unlabelled images (ICLR 2025, arXiv 2407.10366).

Teacher and student see the same view. The student learns the teacher's tokens of the last block after the final norm,
by three terms, each through its own head (LayerNorm, Linear):

    token    class token of the clean view
    feature  class token and all patch tokens of the clean view
    patch    patch tokens at hidden positions of a masked view

Clean and masked views go through the student as one batch, and only masked images take the second pass; the released
code runs it for all of them and throws half away (same loss, a quarter less work for the student).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attar.config import ProteusConfig
from attar.errors import ShapeError
from attar.losses import token_distance
from attar.methods.base import Taught, first_views
from attar.methods.teacher import ask, check_patches, frozen, resample_tokens, resize
from attar.methods.teacher_cache import Answers
from attar.models import Backbone, ProjectionHead
from attar.types import Batch, StepOutput, Tokens
from attar.utils.distributed import sum_over_ranks, world_size
from attar.utils.progress import track
from attar.utils.seeding import numpy_generator

_MEASURED = 512  # views, of all ranks together: a channel's deviation is then known to some 3 %


@dataclass(frozen=True)
class PatchMasks:
    """Which images of a local batch are masked, and where.

    Attributes:
        rows: (m,) int64, rows of the local batch.
        hidden: (m, N) bool, exactly K of N true in each row.
        total: Hidden patches in the global batch; the patch term's mean runs over these.
    """

    rows: Tensor
    hidden: Tensor
    total: int


def draw_masks(batch: Batch, num_patches: int, config: ProteusConfig, *, seed: int) -> PatchMasks:
    """Masks of a batch, a function of (seed, step, position in the global batch).

    `floor(B * mask_probability)` images of the global batch have `floor(N * mask_ratio)` patches hidden, uniformly.
    Rule `random` draws the images; `paper` takes the first ones of the local batch, as the released code does
    (spec §1.2, §6.4).
    """
    hidden_patches = int(num_patches * config.mask_ratio)
    local = len(batch.positions)
    if config.mask_rule == "paper":
        rows = np.arange(int(local * config.mask_probability))
        masked_images = len(rows) * batch.global_batch_size // local
    else:
        masked_images = int(batch.global_batch_size * config.mask_probability)
        order = numpy_generator(seed, "masked images", batch.step).permutation(batch.global_batch_size)
        rows = np.flatnonzero(np.isin(batch.positions.numpy(), order[:masked_images]))
    hidden = np.zeros((len(rows), num_patches), dtype=bool)
    for one, position in zip(hidden, batch.positions[rows].tolist(), strict=True):
        one[numpy_generator(seed, "mask", batch.step, position).permutation(num_patches)[:hidden_patches]] = True
    return PatchMasks(torch.from_numpy(rows), torch.from_numpy(hidden), masked_images * hidden_patches)


class Standardiser(nn.Module):
    """Brings each teacher channel to mean 0 and standard deviation 1; statistics are measured once, then frozen.

    An option, not the paper's: Proteus uses raw targets.
    """

    cls_mean: Tensor
    cls_std: Tensor
    patch_mean: Tensor
    patch_std: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        for name, value in (("mean", torch.zeros(dim)), ("std", torch.ones(dim))):
            self.register_buffer(f"cls_{name}", value.clone())
            self.register_buffer(f"patch_{name}", value.clone())

    def measure(self, targets: Iterable[Tokens]) -> None:
        """Set the statistics from teacher tokens, two passes' worth of sums in float64."""
        sums: dict[str, list[Tensor]] = {}
        for tokens in targets:
            for name, values in (("cls", tokens.cls), ("patch", tokens.patch.flatten(0, 1))):
                if not len(values):  # no term learns from patch tokens
                    continue
                values = values.double()
                found = [values.new_tensor(float(len(values))), values.sum(0), values.square().sum(0)]
                sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
        for name, own in sums.items():
            count, total, squares = (sum_over_ranks(value) for value in own)
            mean = total / count
            std = (squares / count - mean.square()).clamp_min(0).sqrt()
            getattr(self, f"{name}_mean").copy_(mean)
            getattr(self, f"{name}_std").copy_(std.clamp_min(1e-3 * float(std.mean()) + 1e-8))

    def forward(self, target: Tokens) -> Tokens:
        """Standardised tokens."""
        cls = (target.cls - self.cls_mean) / self.cls_std
        patch = (target.patch - self.patch_mean) / self.patch_std
        return Tokens(cls, patch, target.grid, target.prefix)


class ProteusLearner(nn.Module):
    """Student, heads and mask token: all that learns. One forward runs both passes and returns the terms."""

    def __init__(self, student: Backbone, teacher_dim: int, config: ProteusConfig) -> None:
        super().__init__()
        self.config = config
        self.student = student
        dim = student.embed_dim
        if config.token_weight or config.feature_weight:
            self.token_head = ProjectionHead(dim, teacher_dim)
        if config.feature_weight:
            self.feature_head = ProjectionHead(dim, teacher_dim)
        if config.patch_weight:
            self.patch_head = ProjectionHead(dim, teacher_dim)
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        if config.standardise_targets:
            self.standardiser = Standardiser(teacher_dim)

    def forward(
        self, views: Tensor, target: Tokens, masks: PatchMasks | None, global_batch_size: int
    ) -> dict[str, Tensor]:
        """Unweighted terms, each as this batch's share of the global mean.

        Args:
            views: (B, 3, H, W).
            target: Teacher tokens of the same views, on the student's grid.
            masks: What to hide, None when the patch term is off.
            global_batch_size: Images that the means run over.
        """
        if self.config.standardise_targets:
            target = self.standardiser(target)
        clean, masked = self._passes(views, masks)
        terms: dict[str, Tensor] = {}
        if clean is not None:
            terms |= self._clean_terms(clean, target, global_batch_size)
        if masks is not None:
            terms["patch"] = self._patch_term(masked, target, masks)
        return terms

    def _passes(self, views: Tensor, masks: PatchMasks | None) -> tuple[Tokens | None, Tensor | None]:
        """Clean tokens of all views and patch tokens of the masked ones, in one pass through the student."""
        wants_clean = bool(self.config.token_weight or self.config.feature_weight)
        if masks is None or (wants_clean and len(masks.rows) == 0):
            return self.student(views), None
        masked_views = views[_sent(masks.rows, views.device)]
        hidden = _sent(masks.hidden, views.device)
        if not wants_clean and len(masks.rows) == 0:  # one view whole: other ranks wait for this one's student
            masked_views, hidden = views[:1], hidden.new_zeros(1, hidden.shape[1])
        if not wants_clean:
            return None, self.student(masked_views, masks=hidden, mask_token=self.mask_token).patch
        everything = torch.cat([views, masked_views])
        nothing_hidden = hidden.new_zeros(len(views), hidden.shape[1])
        tokens = self.student(everything, masks=torch.cat([nothing_hidden, hidden]), mask_token=self.mask_token)
        return tokens.map(lambda t: t[: len(views)]), tokens.patch[len(views) :]

    def _clean_terms(self, clean: Tokens, target: Tokens, global_batch_size: int) -> dict[str, Tensor]:
        criterion = self.config.criterion
        cls = token_distance(self.token_head(clean.cls), target.cls, criterion=criterion)  # (B,)
        terms = {}
        if self.config.token_weight:
            terms["token"] = cls.sum() / global_batch_size
        if self.config.feature_weight:
            # the class token enters this term through the token head (spec §1.1)
            patch = token_distance(self.feature_head(clean.patch), target.patch, criterion=criterion)  # (B, N)
            terms["feature"] = (cls.sum() + patch.sum()) / (global_batch_size * (1 + patch.shape[1]))
        return terms

    def _patch_term(self, masked: Tensor | None, target: Tokens, masks: PatchMasks) -> Tensor:
        if masked is None or len(masks.rows) == 0:  # nothing masked in this part: a zero that still reaches all of it
            reached = [self.mask_token, *self.patch_head.parameters(), *([] if masked is None else [masked])]
            return sum((part.sum() * 0 for part in reached), torch.zeros(()))
        # found where masks are drawn, on the CPU: to index by `hidden` on a GPU, the host would wait for its count
        image, place = masks.hidden.nonzero(as_tuple=True)
        row, image, place = (_sent(index, masked.device) for index in (masks.rows[image], image, place))
        guessed, wanted = self.patch_head(masked[image, place]), target.patch[row, place]  # (n, D)
        return token_distance(guessed, wanted, criterion=self.config.criterion).sum() / masks.total


@dataclass(frozen=True)
class Sizes:
    """At which input size both models see a view, and the grids of their patch tokens there.

    Attributes:
        student: Height and width in pixels.
        teacher: Height and width in pixels.
        student_grid: (h, w).
        teacher_grid: (h, w).
    """

    student: int
    teacher: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]

    @property
    def num_patches(self) -> int:
        """Patch tokens of the student."""
        return self.student_grid[0] * self.student_grid[1]


class Proteus(Taught):
    """The method: asks the frozen teacher, draws the masks, weighs the learner's terms.

    Args:
        teacher: Will be frozen.
        student: Learns.
        config: Objectives.
        seed: Names the masks.
        small_steps: First steps, in which both see views at `small_size`. An option, not the paper's (after
            FastDINOv2, arXiv 2507.03779); views, masks and targets stay functions of the step.

    Raises:
        ShapeError: At construction, if grids differ and `resample_tokens` is off, a conv student has no patches to
            hide, or a model does not take small views.
    """

    title = "Proteus (ICLR 2025)"

    def __init__(
        self, teacher: Backbone, student: Backbone, config: ProteusConfig, *, seed: int, small_steps: int = 0
    ) -> None:
        self.config = _without_empty_terms(config)
        self.learns_patches = bool(self.config.feature_weight or self.config.patch_weight)
        self.answer_names = ("class tokens", "patch tokens") if self.learns_patches else ("class tokens",)
        self.seed = seed
        self.teacher = frozen(teacher)
        self.student = student
        _check_fit(teacher, student, self.config)
        self.sizes = self.small_sizes = Sizes(student.img_size, teacher.img_size, student.grid, teacher.grid)
        self.small_steps = small_steps if config.small_size else 0
        if config.small_size:
            self.small_sizes = _small_sizes(teacher, student, config.small_size, self.config)
        learner = ProteusLearner(student, teacher.embed_dim, self.config)
        self.standardiser = learner.standardiser if self.config.standardise_targets else None
        self.learner: nn.Module = learner

    def training_step(self, batch: Batch) -> StepOutput:
        """Weighted loss and unweighted terms, as shares of the global batch."""
        is_small = batch.step < self.small_steps
        sizes, masks = self.small_sizes if is_small else self.sizes, None
        target = self._target(self._ask(batch.views, sizes) if is_small else self.answers(batch), sizes)
        if self.config.patch_weight:  # drawn by the host while a GPU is busy with the teacher
            masks = draw_masks(batch, sizes.num_patches, self.config, seed=self.seed)
        views = resize(batch.views, sizes.student)
        terms = self.learner(views, target, masks, batch.global_batch_size)
        weights = {
            "token": self.config.token_weight,
            "feature": self.config.feature_weight,
            "patch": self.config.patch_weight,
        }
        loss = sum((weights[name] * value for name, value in terms.items()), torch.zeros((), device=views.device))
        return StepOutput(loss, {name: value.detach() for name, value in terms.items()})

    def fetch(self, batch: Batch) -> Batch:
        """The batch with those of its answers that are kept; about small views the teacher is asked in each step."""
        return batch if batch.step < self.small_steps else super().fetch(batch)

    def ask(self, views: Tensor) -> Answers:
        """Class tokens of the teacher; its patch tokens too where a term learns from them."""
        return self._ask(views, self.sizes)

    def target(self, views: Tensor) -> Tokens:
        """Teacher tokens of the views, on the student's grid."""
        return self._target(self.ask(views), self.sizes)

    def _ask(self, views: Tensor, sizes: Sizes) -> Answers:
        tokens = ask(self.teacher, views, img_size=sizes.teacher)
        return (tokens.cls, tokens.patch) if self.learns_patches else (tokens.cls,)

    def _target(self, answers: Answers, sizes: Sizes) -> Tokens:
        cls = answers[0]
        none = cls.new_empty(len(cls), 0, cls.shape[-1])
        if not self.learns_patches:
            return Tokens(cls, none, (0, 0), none)
        return resample_tokens(Tokens(cls, answers[1], sizes.teacher_grid, none), sizes.student_grid)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Set the statistics of standardised targets; nothing to do when the option is off."""
        if self.standardiser is not None:
            device = self.teacher.mean.device
            measured = first_views(batches, _MEASURED)
            if world_size() == 1:  # a signal ends it at once, where several ranks must end together
                what = "measuring the teacher's channels"
                measured = track(measured, what, total=_MEASURED, unit="views", size=lambda batch: len(batch.views))
            self.standardiser.measure(self.target(batch.to(device).views) for batch in measured)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; the host does not wait for what a GPU still has to do."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _without_empty_terms(config: ProteusConfig) -> ProteusConfig:
    """Masking no image is legal: the patch term is then left out (the released code divides by zero)."""
    if config.mask_probability == 0 and config.patch_weight:
        return config.replace(patch_weight=0.0)
    return config


def _small_sizes(teacher: Backbone, student: Backbone, size: int, config: ProteusConfig) -> Sizes:
    """Both models at a smaller size than theirs, the teacher's in proportion; measured on a grey image."""
    teacher_size = round(size * teacher.img_size / student.img_size)
    grids = []
    for role, model, side in (("student", student, size), ("teacher", teacher, teacher_size)):
        if model.can_mask and side % model.patch_size:
            fitting = max(1, side // model.patch_size) * model.patch_size
            raise ShapeError(
                f"proteus.small_size {size}: {side} px are no multiple of the {role}'s patches, {model.patch_size} px."
                f" Try --proteus.small-size {fitting * size // side}."
            )
        try:
            grids.append(model.tokens(torch.full((1, 3, side, side), 0.5)).grid)
        except ShapeError:
            raise ShapeError(
                f"proteus.small_size {size}: {role} {model.source.name} takes {model.img_size} px only, not {side}."
                f" Try dynamic_img_size=true among its options (after a ? or &) in --{role}: timm's ViTs then fit their"
                " positions to the size. Student and teacher both need it."
            ) from None
    sizes = Sizes(size, teacher_size, grids[0], grids[1])
    if config.patch_weight and int(sizes.num_patches * config.mask_ratio) == 0:
        raise ShapeError(
            f"proteus.small_size {size} leaves {sizes.num_patches} patches, and proteus.mask_ratio"
            f" {config.mask_ratio:g} hides none of them. Try a larger size, or --proteus.patch-weight 0."
        )
    if (config.feature_weight or config.patch_weight) and grids[0] != grids[1] and not config.resample_tokens:
        raise ShapeError(
            f"proteus.small_size {size}: patch grids differ, {grids[0][0]}x{grids[0][1]} of the student and"
            f" {grids[1][0]}x{grids[1][1]} of the teacher. Try --proteus.resample-tokens."
        )
    return sizes


def _check_fit(teacher: Backbone, student: Backbone, config: ProteusConfig) -> None:
    check_patches(student, teacher)
    if config.patch_weight and not student.can_mask:
        raise ShapeError(
            f"student {student.source.name} embeds no patch by itself (a conv net, or an overlapping stem): none can"
            f" be hidden, and proteus.patch_weight is {config.patch_weight:g}. Try --proteus.patch-weight 0 (token and"
            " feature terms stay)."
        )
    patches = student.grid[0] * student.grid[1]
    if config.patch_weight and int(patches * config.mask_ratio) == 0:
        raise ShapeError(
            f"proteus.mask_ratio {config.mask_ratio:g} hides none of the {patches} patches."
            f" Try --proteus.mask-ratio {math.ceil(100 / patches) / 100:g}, or --proteus.patch-weight 0."
        )
    needs_grid = config.feature_weight or config.patch_weight
    if needs_grid and teacher.grid != student.grid and not config.resample_tokens:
        sides = [
            f"{role} patch {model.patch_size} at {model.img_size} px gives {model.grid[0]}x{model.grid[1]}"
            for role, model in (("student", student), ("teacher", teacher))
        ]
        fitting = teacher.grid[0] * student.patch_size
        raise ShapeError(
            f"patch grids differ: {', '.join(sides)}.\n"
            f"  Try --proteus.resample-tokens, or --img-size {fitting} with --teacher-img-size {teacher.img_size}"
            f"{_finer(teacher, student)}."
        )


def _finer(teacher: Backbone, student: Backbone) -> str:
    """How a conv teacher gets the student's grid, where timm's conv nets can be dilated to it."""
    stride = teacher.img_size / student.grid[0]
    return f", or ?output_stride={stride:g} in --teacher" if stride in (8, 16) and not teacher.can_mask else ""
