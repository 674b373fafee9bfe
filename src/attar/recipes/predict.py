"""`attar predict`: what a finished task model says of images, as a table, or as a map of classes for each."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attar.config import PredictConfig
from attar.config.files import read_settings
from attar.data.decode import open_image
from attar.data.loader import EvaluationDataset, default_workers, evaluation_batches, images_in
from attar.data.sources import Source, open_source
from attar.data.views import EvaluationView
from attar.errors import ConfigError, DataError, DecodeError, ModelReferenceError, meant_beside
from attar.evaluation.dense.windows import predict as predict_image
from attar.evaluation.predictions import geometry_of, pixel_logits
from attar.export import builds_itself, read_task_model
from attar.models import TaskModel
from attar.reports.transfer import STAGES
from attar.utils.distributed import pick_device
from attar.utils.io import new_file, storage_errors
from attar.utils.progress import Log, track
from attar.utils.signals import polite_stop

_TABLE = "classes.csv"  # beside maps
_BATCH = 64  # images of a classifier at a time
_MOST_CLASSES = 255  # that 8 bits can tell apart from void


@dataclass(frozen=True)
class PredictReport:
    """What was written: images with predictions, and names of those that could not be read."""

    out: Path
    images: int
    unreadable: tuple[str, ...]


def predict(config: PredictConfig) -> PredictReport:
    """Write what a model says of each image; rows of images come in order.

    A classifier gives a table: path, class, probability, then the next likely classes. A segmentation model gives a
    folder: a PNG of class numbers for each image, in its size, and `classes.csv` with the share of each class in it. An
    image that cannot be read has a row without a class.

    Raises:
        UserError: If there is no such model, or it is not finished, or no image can be read, or the file cannot be
            written; what stood at `out` stays then.
    """
    device = pick_device(config.device)
    with polite_stop(keeps=False):
        folder = model_folder(Path(config.model).expanduser())
        model = read_task_model(folder, reference=config.reference).to(device)
        if config.reference is not None and builds_itself(folder):
            raise ConfigError(f"reference is {config.reference}, and {folder} says all of its backbone. Leave it out.")
        source = open_source(config.data)
        out = Path(config.out).expanduser()
        with storage_errors(out):
            unreadable = _WRITERS[model.task](model, source, config, out)
    log = Log()
    log.say(f"  {len(source) - len(unreadable):,} images  {out}")
    for name in unreadable[:5]:
        log.say(f"  unreadable  {name}")
    if len(unreadable) > 5:
        log.say(f"  and {len(unreadable) - 5:,} more, their rows have no class")
    return PredictReport(out, len(source) - len(unreadable), tuple(unreadable))


def model_folder(path: Path) -> Path:
    """The folder itself, or the student of a run.

    Raises:
        ModelReferenceError: If there is nothing, or a run that has no student yet.
    """
    if not path.exists():
        raise ModelReferenceError(
            f"{path} does not exist.{meant_beside(path)} Give a run of attar transfer, or a student/ or teacher/ in it."
        )
    if is_task_model(path / "student"):
        return path / "student"
    if not is_transfer(path):
        return path
    done = [path / stage / who for stage in STAGES for who in ("teacher", "student")]
    done = [folder for folder in done if is_task_model(folder)]
    raise ModelReferenceError(
        f"{path} is a run of attar transfer that is not finished; the same attar transfer command goes on."
        + (f" What can be used already: {', '.join(map(str, done))}." if done else " Nothing in it can be used yet.")
    )


def is_task_model(folder: Path) -> bool:
    """Whether the folder holds a backbone with a head."""
    return (folder / "task.json").is_file()


def is_transfer(folder: Path) -> bool:
    """Whether it is a run of attar transfer, by its settings."""
    settings = folder / "config.yaml"
    return (folder / "run.json").is_file() and settings.is_file() and "finetune" in read_settings(settings)


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    """A writer of rows into a file that is there when all of them are, and not at all after an error."""
    with new_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        yield csv.writer(file)


def _check_any(unreadable: Sequence[str], source: Source) -> None:
    if len(unreadable) == len(source):
        raise DataError(f"none of the {len(source)} images can be read, such as {unreadable[0]}.")


# --- a class for each image ------------------------------------------------------------------------------------------


def _classify(model: TaskModel, source: Source, config: PredictConfig, out: Path) -> list[str]:
    """Write the table; names of images that cannot be read."""
    if config.top_k > len(model.class_names):
        raise ConfigError(f"top_k is {config.top_k}, and there are {len(model.class_names)} classes. Ask for fewer.")
    view = EvaluationView(model.backbone.img_size, config.crop_pct)
    dataset = EvaluationDataset(source, np.arange(len(source), dtype=np.int64), view)
    workers = default_workers() if config.workers is None else config.workers
    loader = evaluation_batches(dataset, batch_size=_BATCH, workers=workers)
    unreadable, done = [], 0
    with _table(out) as table:
        table.writerow(_heading(config.top_k))
        for images, positions in track(loader, "predicting", total=len(source), unit="images", size=images_in):
            rows = {}
            if len(positions):
                shares = model.logits(images).softmax(1).topk(config.top_k)
                for where, p, k in zip(positions.tolist(), *(x.cpu().tolist() for x in shares), strict=True):
                    rows[where] = [c for pair in zip(k, p, strict=True) for c in _cells(model.class_names, *pair)]
            for row in range(done, min(done + _BATCH, len(source))):
                if row not in rows:
                    unreadable.append(source.name(row))
                table.writerow([source.name(row), *rows.get(row, [""] * 2 * config.top_k)])
            done += _BATCH
        _check_any(unreadable, source)
    return unreadable


def _heading(top_k: int) -> list[str]:
    more = [word for k in range(2, top_k + 1) for word in (f"class_{k}", f"probability_{k}")]
    return ["path", "class", "probability", *more]


def _cells(names: tuple[str, ...], label: int, share: float) -> tuple[str, str]:
    return names[label], f"{share:.6f}"


# --- a class for each pixel ------------------------------------------------------------------------------------------


def _segment(model: TaskModel, source: Source, config: PredictConfig, out: Path) -> list[str]:
    """Write maps and the table of shares; names of images that cannot be read."""
    if len(model.class_names) > _MOST_CLASSES:
        raise DataError(f"{len(model.class_names)} classes do not fit into PNG files of 8 bits; {_MOST_CLASSES} would.")
    if out.is_file():
        raise ConfigError(f"--out {out} is a file; maps of classes go into a folder. Name another place.")
    unreadable = []
    with _table(out / _TABLE) as table:
        table.writerow(["path", "map", *model.class_names])
        names = _map_names(source)
        for row in track(range(len(source)), "predicting", total=len(source), unit="images"):
            try:
                found = _classes_of(model, source, row)
            except DecodeError:
                unreadable.append(source.name(row))
                table.writerow([source.name(row)])
                continue
            file = out / names[row]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(found.numpy()).save(file)
            shares = torch.bincount(found.flatten(), minlength=len(model.class_names)) / found.numel()
            table.writerow([source.name(row), names[row], *(f"{share:.6f}" for share in shares.tolist())])
        _check_any(unreadable, source)
    return unreadable


def _classes_of(model: TaskModel, source: Source, row: int) -> Tensor:
    """(H, W) uint8 class numbers of an image, in its size."""
    image = open_image(source.read(row), name=source.name(row))
    width, height = image.size
    device = model.backbone.mean.device
    see, geometry = partial(pixel_logits, model), geometry_of(model)
    return predict_image(see, image, geometry, size=(height, width), device=device)[0].argmax(0).to(torch.uint8).cpu()


def _map_names(source: Source) -> list[str]:
    """Where each image's map lies below the folder: the image's path, which must not lead out of it, as a PNG.

    Images that differ in their endings alone keep them.
    """
    paths = [_below(source.name(row)) for row in range(len(source))]
    counts = Counter(path.with_suffix("") for path in paths)
    return [str(path.with_suffix(".png")) if counts[path.with_suffix("")] == 1 else f"{path}.png" for path in paths]


def _below(name: str) -> PurePosixPath:
    kept = [part.replace(":", "_") for part in PurePosixPath(name).parts if part not in ("/", "..")]
    return PurePosixPath(*kept)


_WRITERS: dict[str, Callable[[TaskModel, Source, PredictConfig, Path], list[str]]] = {
    "classification": _classify,
    "segmentation": _segment,
}
