"""What teacher and student see of the same images: patch tokens as colours, neighbours, classes, disagreement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.config import ReportConfig
from attar.data.labelled import Labelled, Rows
from attar.data.views import EvaluationView
from attar.errors import DataError
from attar.evaluation.embedding import evaluation_views
from attar.evaluation.side_by_side import Found, Outcome, agreement, by_class, find, predictions, shared
from attar.evaluation.token_maps import ColourBasis, fit_map
from attar.methods.teacher import resample_tokens
from attar.models import Backbone, ProjectionHead
from attar.models.compute import forward_macs
from attar.recipes.describe import millions
from attar.recipes.report_images import Sample
from attar.reports.pictures import ClassChange, Findings, Neighbours, Shown, TokenMap, photo, pixel_map, thumbnail
from attar.reports.transfer import gmacs
from attar.train.checkpoint import saved_learner
from attar.types import Tokens

_NEAREST, _SHOWN = 10, 5  # neighbours that are compared and vote; and that are shown
_APART = 4  # rows of the greatest disagreement
_MOST_CLASSES, _CHANGES, _EXAMPLES = 20, 8, 4  # all classes are listed up to so many, else so many at either end
_WITH_EXAMPLES = 3  # classes at either end that get pictures
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


def class_token(backbone: Backbone, images: Tensor) -> Tensor:
    """(B, D) as the k-NN monitor has it."""
    return backbone.tokens(images).cls


def joint_embedding(backbone: Backbone, images: Tensor) -> Tensor:
    """(B, E) in the space that images share with sentences."""
    return backbone.embed(images)


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


def find_out(pair: Pair, sample: Sample, config: ReportConfig, *, workers: int) -> Findings:
    """All that a page shows of a teacher and its student.

    Raises:
        DataError: If no image can be read, or only one.
    """
    looked = _Looked.at(pair, sample, workers=workers)
    maps, mapped_by = _maps(pair, looked, config, workers=workers)
    found = {role: find(*features, k=_NEAREST, own=looked.own) for role, features in looked.features.items()}
    agreed = agreement(looked.features["teacher"], looked.features["student"], own=looked.own)
    row = _Rows(looked.sample, found, agreed)
    total, classes = _classes(looked.sample, found) if looked.sample.has_classes else (None, [])
    apart = agreed.argsort(stable=True)[:_APART].tolist()
    return Findings(
        place=looked.sample.place,
        mapped_by=mapped_by,
        maps=tuple(maps),
        rows=tuple(row(number) for number in range(min(config.rows, len(agreed)))),
        apart=tuple(row(number) for number in apart) if config.rows else (),
        total=total,
        classes=tuple(classes),
        overlap=float(shared(found["teacher"], found["student"]).sum(1).float().mean()),
        nearest=found["teacher"].rows.shape[1],
        models={role: _facts(backbone, looked.speeds[role]) for role, backbone in pair.roles.items()},
        device=_name(pair.teacher.mean.device),
    )


@dataclass(frozen=True)
class _Looked:
    """The readable images, and (bank, queries) of their features by role."""

    sample: Sample
    features: Mapping[str, tuple[Tensor, Tensor]]
    speeds: Mapping[str, float]

    @classmethod
    def at(cls, pair: Pair, sample: Sample, *, workers: int) -> _Looked:
        parts = {"bank": sample.bank} if sample.is_one else {"bank": sample.bank, "queries": sample.queries}
        seen = {
            (role, part): _embed(backbone, images, pair.see, sample.crop_pct, workers, f"images, {role}")
            for role, backbone in pair.roles.items()
            for part, images in parts.items()
        }
        kept: dict[str, Rows] = {}
        for part in parts:
            both = np.intersect1d(seen["teacher", part].positions, seen["student", part].positions)
            if len(both) < 2:
                raise DataError(f"{len(both)} of {len(parts[part])} images can be read: there is nothing to compare.")
            kept[part] = both
        kept.setdefault("queries", kept["bank"])
        readable = replace(sample, bank=sample.bank.take(kept["bank"]), queries=sample.queries.take(kept["queries"]))
        features = {
            role: (
                seen[role, "bank"].at(kept["bank"]),
                seen[role, "bank" if sample.is_one else "queries"].at(kept["queries"]),
            )
            for role in pair.roles
        }
        speeds = {
            role: sum(len(seen[role, part].positions) for part in parts)
            / sum(seen[role, part].seconds for part in parts)
            for role in pair.roles
        }
        return cls(readable, features, speeds)

    @property
    def own(self) -> Tensor | None:
        """Row of each query in the bank."""
        return torch.arange(len(self.sample.queries)) if self.sample.is_one else None


@dataclass(frozen=True)
class _Embedded:
    """Features of the readable images, ascending by position, and the time that the model took."""

    positions: Rows
    rows: Tensor
    seconds: float

    def at(self, positions: Rows) -> Tensor:
        return self.rows[torch.from_numpy(np.searchsorted(self.positions, positions))]


def _embed(
    backbone: Backbone,
    images: Labelled,
    see: Callable[[Backbone, Tensor], Tensor],
    crop_pct: float,
    workers: int,
    name: str,
) -> _Embedded:
    rows, positions, seconds = [], [], 0.0
    view = EvaluationView(backbone.img_size, crop_pct)
    for batch, where in evaluation_views(images, view, workers=workers, doing=f"embedding {name}"):
        if len(where):
            started = time.perf_counter()
            rows.append(see(backbone, batch).cpu())  # which waits for the device
            seconds += time.perf_counter() - started
            positions.append(where)
    if not rows:
        raise DataError(
            f"none of the {len(images)} images can be read, such as {images.source.name(int(images.rows[0]))}."
        )
    return _Embedded(torch.cat(positions).numpy(), torch.cat(rows), max(seconds, 1e-9))


# --- patch tokens as colours -----------------------------------------------------------------------------------------


def _maps(pair: Pair, looked: _Looked, config: ReportConfig, *, workers: int) -> tuple[list[TokenMap], str]:
    """Maps of the first queries, and how the student's tokens came into the teacher's space."""
    sample = looked.sample
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


# --- neighbours and classes ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Makes the row of a query."""

    sample: Sample
    found: Mapping[str, Found]
    agreed: Tensor

    def __call__(self, number: int) -> Neighbours:
        return Neighbours(
            query=_shown(self.sample, self.sample.queries, number),
            teacher=self._of("teacher", "student", number),
            student=self._of("student", "teacher", number),
            agreement=float(self.agreed[number]),
        )

    def _of(self, role: str, other: str, number: int) -> tuple[Shown, ...]:
        """The first neighbours; a dot for those among all that the other finds."""
        both = shared(self.found[role], self.found[other])[number].tolist()
        wanted = int(self.sample.queries.labels[number])
        return tuple(
            replace(_shown(self.sample, self.sample.bank, row, wanted=wanted), is_shared=is_shared)
            for row, is_shared in list(zip(self.found[role].rows[number].tolist(), both, strict=True))[:_SHOWN]
        )


def _shown(
    sample: Sample, images: Labelled, number: int, *, wanted: int | None = None, says: int | None = None
) -> Shown:
    """An image with its class, or what a model says instead."""
    row = int(images.rows[number])
    names, label = images.class_names, int(images.labels[number]) if says is None else says
    mark: Any = "" if wanted is None or not sample.has_classes else "right" if label == wanted else "wrong"
    return Shown(
        address=thumbnail(images.source, row),
        name=images.source.name(row),
        label=names[label] if sample.has_classes else "",
        mark=mark,
    )


def _classes(sample: Sample, found: Mapping[str, Found]) -> tuple[ClassChange, list[ClassChange]]:
    """What the student loses and gains over all, and class by class, the greatest loss first.

    Of very many classes those at either end.
    """
    names, labels = sample.bank.class_names, torch.from_numpy(sample.bank.labels)
    targets = torch.from_numpy(sample.queries.labels)
    said = {role: predictions(one, labels, num_classes=len(names)) for role, one in found.items()}
    outcomes = by_class(said["teacher"], said["student"], targets)
    order = sorted(outcomes, key=lambda number: outcomes[number].other - outcomes[number].one)
    if len(order) > _MOST_CLASSES:
        order = order[:_CHANGES] + order[-_CHANGES:]
    pictured = {*order[:_WITH_EXAMPLES], *order[-_WITH_EXAMPLES:]}
    changes = [
        _change(
            names[number],
            outcomes[number],
            _examples(sample, said, number, outcomes[number]) if number in pictured else (),
        )
        for number in order
    ]
    return _change("all", Outcome.of(said["teacher"] == targets, said["student"] == targets)), changes


def _change(name: str, outcome: Outcome, examples: tuple[Shown, ...] = ()) -> ClassChange:
    return ClassChange(name, outcome.images, outcome.one, outcome.other, outcome.margin, examples)


def _examples(sample: Sample, said: Mapping[str, Tensor], number: int, outcome: Outcome) -> tuple[Shown, ...]:
    """Images of a class that only the model which does better on it is right on, with what the other takes them for."""
    if outcome.one == outcome.other:
        return ()
    winner, loser = ("teacher", "student") if outcome.other < outcome.one else ("student", "teacher")
    targets = torch.from_numpy(sample.queries.labels)
    chosen = (targets == number) & (said[winner] == targets) & (said[loser] != targets)
    places = chosen.nonzero()[:_EXAMPLES, 0].tolist()
    return tuple(_shown(sample, sample.queries, place, says=int(said[loser][place])) for place in places)


# --- the models ------------------------------------------------------------------------------------------------------


def _facts(backbone: Backbone, speed: float) -> dict[str, str]:
    height, width = backbone.grid
    return {
        "parameters": millions(backbone.num_parameters),
        "macs": f"{gmacs(forward_macs(backbone))} G",
        "input": f"{backbone.img_size} px, {height}x{width} tokens of {backbone.embed_dim}",
        "speed": f"{speed:,.0f}",
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
