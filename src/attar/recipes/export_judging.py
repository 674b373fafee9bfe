"""What a file is worth on labelled images, and what int8 took from it: all files see the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from attar.config import MonitorConfig
from attar.data.labelled import open_labelled
from attar.data.views import EvaluationView
from attar.errors import ConfigError, ExportError
from attar.evaluation import METRICS, KnnMonitor, wilson_interval
from attar.evaluation.embedding import evaluation_views, seen
from attar.export.onnx import OnnxModel


@dataclass(frozen=True)
class Judged:
    """A share of labelled images that are right.

    Attributes:
        kind: How, in words.
        value: In [0, 1].
        ci95: Its 95 % interval.
        images: Number it was measured on.
    """

    kind: str
    value: float
    ci95: tuple[float, float]
    images: int


def judge_files(
    files: Mapping[str, OnnxModel],
    place: str,
    *,
    class_names: Sequence[str],
    crop_pct: float,
    limit: int,
    seed: int,
    workers: int,
) -> dict[str, Judged]:
    """The accuracy of classifiers, the k-NN of embeddings, of each file by name.

    Args:
        files: Whose first output is judged.
        place: Labelled images, of which a classifier's must have its classes.
        class_names: Of the logits; nothing for embeddings.
        crop_pct: Share of the resized image that the centre crop keeps.
        limit: Images at most.
        seed: Names their choice.
        workers: Loader processes.

    Raises:
        UserError: If the images cannot be used.
    """
    train, test = open_labelled(place, seed=seed)
    if class_names and tuple(class_names) != test.class_names:
        odd = sorted(set(class_names) ^ set(test.class_names)) or list(test.class_names)
        raise ConfigError(
            f"knn is {place}, whose classes are not the model's: {', '.join(odd[:5])} are in one of them, or in another"
            " order. Give images of the classes in classes.txt."
        )
    monitor = KnnMonitor(train, test, limit=limit, k=MonitorConfig().k, seed=seed, crop_pct=crop_pct, workers=workers)
    if class_names:
        judged_on = monitor.report
        batches = list(
            evaluation_views(
                judged_on, EvaluationView(_size(files), crop_pct), workers=workers, doing="reading labelled images"
            )
        )
        found = {}
        for name, model in files.items():
            logits, labels = seen(partial(_first_output, model), judged_on, batches)
            found[name] = _judged("accuracy", METRICS["top1"](logits, labels), len(labels))
        return found
    scores = {name: dict(monitor.run(model)) for name, model in files.items()}
    return {
        name: _judged("k-NN top-1", score["knn_report"], int(score["knn_images"])) for name, score in scores.items()
    }


def check_drop(judged: Mapping[str, Judged], full: str, small: str, *, most: float | None) -> float:
    """Points that the small file lost.

    Raises:
        ExportError: If they are more than may be lost.
    """
    drop = 100 * (judged[full].value - judged[small].value)
    if most is not None and drop > most:
        raise ExportError(
            f"int8 loses {drop:.1f} points of {judged[small].kind} ({100 * judged[full].value:.1f} to"
            f" {100 * judged[small].value:.1f} on {judged[small].images:,} images), and --max-drop allows {most:g}."
            " Nothing was written. Try more --calibration images that are like those in use, or leave int8 out."
        )
    return drop


def judged_table(judged: Mapping[str, Judged]) -> str:
    """Markdown: a row for each file."""
    kind = next(iter(judged.values())).kind
    lines = [f"| | {kind} | 95 % interval | images |", "|---|---|---|---|"]
    for name, found in judged.items():
        low, high = (f"{100 * bound:.1f}" for bound in found.ci95)
        lines.append(f"| {name} | {100 * found.value:.1f} | {low} – {high} | {found.images:,} |")
    return "\n".join(lines)


def _first_output(model: OnnxModel, images: Tensor) -> Tensor:
    return model.tokens(images).cls


def _judged(kind: str, value: float, images: int) -> Judged:
    return Judged(kind, value, wilson_interval(value, images), images)


def _size(files: Mapping[str, OnnxModel]) -> int:
    return next(iter(files.values())).img_size
