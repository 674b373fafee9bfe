"""What teacher and student see of the same images: neighbours, classes, disagreement, and how quick they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from attar.export.speed import BATCHES, Speed, machine, speeds
from attar.models import Backbone
from attar.models.compute import forward_macs
from attar.recipes.describe import millions
from attar.recipes.report_images import Sample
from attar.recipes.report_maps import Pair, token_maps
from attar.reports.pictures import ClassChange, Findings, Neighbours, Shown, thumbnail
from attar.reports.transfer import gmacs

_NEAREST, _SHOWN = 10, 5  # neighbours that are compared and vote; and that are shown
_APART = 4  # rows of the greatest disagreement
_MOST_CLASSES, _CHANGES, _EXAMPLES = 20, 8, 4  # all classes are listed up to so many, else so many at either end
_WITH_EXAMPLES = 3  # classes at either end that get pictures
_ROUNDS = 3  # that both models are timed in


def class_token(backbone: Backbone, images: Tensor) -> Tensor:
    """(B, D) as the k-NN monitor has it."""
    return backbone.tokens(images).cls


def joint_embedding(backbone: Backbone, images: Tensor) -> Tensor:
    """(B, E) in the space that images share with sentences."""
    return backbone.embed(images)


def find_out(pair: Pair, sample: Sample, config: ReportConfig, *, workers: int) -> Findings:
    """All that a page shows of a teacher and its student.

    Raises:
        DataError: If no image can be read, or only one.
    """
    looked = _Looked.at(pair, sample, workers=workers)
    maps, mapped_by = token_maps(pair, looked.sample, config, workers=workers)
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
        models={role: _facts(pair.roles[role], speed) for role, speed in _speeds(pair).items()},
        device=_name(pair.teacher.mean.device),
    )


@dataclass(frozen=True)
class _Looked:
    """The readable images, and (bank, queries) of their features by role."""

    sample: Sample
    features: Mapping[str, tuple[Tensor, Tensor]]

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
        return cls(readable, features)

    @property
    def own(self) -> Tensor | None:
        """Row of each query in the bank."""
        return torch.arange(len(self.sample.queries)) if self.sample.is_one else None


@dataclass(frozen=True)
class _Embedded:
    """Features of the readable images, ascending by position."""

    positions: Rows
    rows: Tensor

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
    rows, positions = [], []
    view = EvaluationView(backbone.img_size, crop_pct)
    for batch, where in evaluation_views(images, view, workers=workers, doing=f"embedding {name}"):
        if len(where):
            rows.append(see(backbone, batch).cpu())
            positions.append(where)
    if not rows:
        raise DataError(
            f"none of the {len(images)} images can be read, such as {images.source.name(int(images.rows[0]))}."
        )
    return _Embedded(torch.cat(positions).numpy(), torch.cat(rows))


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


def _speeds(pair: Pair) -> dict[str, Speed]:
    """Of both models on noise."""

    def way(backbone: Backbone) -> Callable[[int], object]:
        images = torch.rand(max(BATCHES), 3, backbone.img_size, backbone.img_size, device=backbone.mean.device)
        return lambda size: pair.see(backbone, images[:size]).cpu()  # which waits for the device

    return speeds({role: way(backbone) for role, backbone in pair.roles.items()}, repeats=_ROUNDS)


def _facts(backbone: Backbone, speed: Speed) -> dict[str, str]:
    one, many = BATCHES
    height, width = backbone.grid
    return {
        "parameters": millions(backbone.num_parameters),
        "macs": f"{gmacs(forward_macs(backbone))} G",
        "input": f"{backbone.img_size} px, {height}x{width} tokens of {backbone.embed_dim}",
        "latency": f"{speed.milliseconds[one]:.2f} ms",
        "speed": f"{speed.per_second(many):,.0f}",
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return machine() if device.type == "cpu" else str(device)
