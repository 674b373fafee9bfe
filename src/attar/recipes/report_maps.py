"""Patch tokens of teacher and student as colours, the student's on the teacher's basis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.config import ReportConfig
from attar.data.labelled import Labelled
from attar.data.views import EvaluationView
from attar.evaluation.embedding import evaluation_views
from attar.evaluation.token_maps import ColourBasis, fit_map
from attar.methods.teacher import resample_tokens
from attar.models import Backbone, ProjectionHead
from attar.recipes.report_images import Sample
from attar.reports.pictures import TokenMap, photo, pixel_map
from attar.train.checkpoint import saved_learner
from attar.types import Tokens

_FIT_TOKENS, _FIT_IMAGES = 16_384, 256  # that colours and maps are fitted on, at most
_FEW = 4  # other images than these are too few to fit anything on

TokenMapping = Callable[[Tensor], Tensor]
"""From student tokens (..., d) to the teacher's space (..., D), on the CPU."""


@dataclass(frozen=True)
class Pair:
    """A teacher and its student.

    Attributes:
        teacher: On the device.
        student: Likewise.
        see: What embeds images for search: (B, D) of a backbone and images.
        head: The run's own map of patch tokens, None where there is none to be used.
        told: Which head that is, or why there is none.
    """

    teacher: Backbone
    student: Backbone
    see: Callable[[Backbone, Tensor], Tensor]
    head: TokenMapping | None
    told: str

    @property
    def roles(self) -> dict[str, Backbone]:
        return {"teacher": self.teacher, "student": self.student}


def saved_head(
    run: Path, settings: Mapping[str, Any], *, student_dim: int, teacher_dim: int
) -> tuple[TokenMapping | None, str]:
    """Proteus' feature head, as it stood beside the student that was kept; or None, and why.

    Args:
        run: Directory of the run.
        settings: Of the run.
        student_dim: Width d of the student's tokens.
        teacher_dim: Width D of the teacher's.
    """
    if settings.get("method") != "proteus" or not settings["proteus"]["feature_weight"]:
        return None, "the run taught it by no head on patch tokens"
    if settings["proteus"]["standardise_targets"]:
        return None, "the run's head speaks of standardised tokens"
    found = saved_learner(run / "checkpoints", "feature_head.")
    if found is None or not found[1]:
        return None, "the run's head is gone with its checkpoints"
    state, tensors = found
    best = state["notes"].get("best", {})
    if best.get("role", "student") != "student" or best.get("step", state["step"]) != state["step"]:
        return None, "the student that was kept stands at another step than the head in the last checkpoint"
    head = ProjectionHead(student_dim, teacher_dim)
    head.load_state_dict(tensors)
    head.requires_grad_(False)
    return (lambda tokens: head(tokens.float().cpu())), f"the run's own feature head at step {state['step']:,}"


def token_maps(pair: Pair, sample: Sample, config: ReportConfig, *, workers: int) -> tuple[list[TokenMap], str]:
    """Maps of the first queries, and how the student's tokens came into the teacher's space."""
    images = sample.queries.take(np.arange(min(config.maps, len(sample.queries))))
    if not len(images):
        return [], ""
    others = sample.bank.take(np.arange(len(images) if sample.is_one else 0, len(sample.bank)))
    has_others = len(others) >= _FEW
    patches = max(backbone.grid[0] * backbone.grid[1] for backbone in pair.roles.values())
    fitting = (others if has_others else images).take(
        np.arange(min(_FIT_IMAGES, max(_FEW, _FIT_TOKENS // patches), len(others if has_others else images)))
    )
    fit = {role: _tokens(backbone, fitting, sample, workers)[1] for role, backbone in pair.roles.items()}
    views, teacher = _tokens(pair.teacher, images, sample, workers)
    student_views, student = _tokens(pair.student, images, sample, workers)
    basis = ColourBasis.fit(fit["teacher"].patch.flatten(0, 1), seed=config.seed)
    mapping, told = pair.head, pair.told
    if mapping is None:
        on_grid = resample_tokens(fit["student"], pair.teacher.grid).patch
        mapping = fit_map(on_grid.flatten(0, 1), fit["teacher"].patch.flatten(0, 1), seed=config.seed)
        whose = f"{len(fitting)} other images" if has_others else "these very images, which flatters the student"
        told = f"least squares on {whose}, as {told}"
    mapped = replace(student, patch=mapping(student.patch))
    on_grid = resample_tokens(mapped, pair.teacher.grid).patch
    if pair.student.img_size > pair.teacher.img_size:
        views = student_views
    return [
        TokenMap(
            image=photo(views[number].permute(1, 2, 0).numpy()),
            name=images.source.name(int(images.rows[number])),
            teacher=pixel_map(basis.colours(teacher.patch[number]).reshape(*pair.teacher.grid, 3)),
            student=pixel_map(basis.colours(mapped.patch[number]).reshape(*pair.student.grid, 3)),
            likeness=basis.likeness(on_grid[number], teacher.patch[number]),
        )
        for number in range(len(images))
    ], f"They came into the teacher's space by {told}."


def _tokens(backbone: Backbone, images: Labelled, sample: Sample, workers: int) -> tuple[Tensor, Tokens]:
    """Views (B, 3, S, S) of readable images and their tokens, on the CPU."""
    views, found = [], []
    view = EvaluationView(backbone.img_size, sample.crop_pct)
    for batch, where in evaluation_views(images, view, workers=workers, doing="reading patch tokens"):
        if len(where):
            views.append(batch)
            found.append(backbone.tokens(batch).map(Tensor.cpu))
    cls, patch, prefix = (torch.cat([getattr(tokens, name) for tokens in found]) for name in ("cls", "patch", "prefix"))
    return torch.cat(views), Tokens(cls, patch, found[0].grid, prefix)
