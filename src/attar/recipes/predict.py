"""`attar predict`: what a finished task model says of images, as a table."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attar.config import PredictConfig
from attar.data.loader import EvaluationDataset, default_workers, evaluation_batches
from attar.data.sources import open_source
from attar.data.views import EvaluationView
from attar.errors import ConfigError, DataError
from attar.export import read_task_model
from attar.utils.distributed import pick_device
from attar.utils.io import storage_errors
from attar.utils.progress import Log, track
from attar.utils.signals import polite_stop


@dataclass(frozen=True)
class PredictReport:
    """What was written: images with predictions, and names of those that could not be read."""

    out: Path
    images: int
    unreadable: tuple[str, ...]


def predict(config: PredictConfig) -> PredictReport:
    """Write a row for each image: path, class, probability, then the next likely classes; rows of images come in order.

    An image that cannot be read has a row without a class.

    Raises:
        UserError: If there is no such model, or no image that can be read, or the file cannot be written.
    """
    device = pick_device(config.device)
    with polite_stop():
        model = read_task_model(_model_folder(Path(config.model).expanduser())).to(device)
        if config.top_k > len(model.class_names):
            raise ConfigError(
                f"top_k is {config.top_k}, and there are {len(model.class_names)} classes. Ask for fewer."
            )
        source = open_source(config.data)
        view = EvaluationView(model.backbone.img_size, config.crop_pct)
        dataset = EvaluationDataset(source, np.arange(len(source), dtype=np.int64), view)
        workers = default_workers() if config.workers is None else config.workers
        loader = evaluation_batches(dataset, batch_size=64, workers=workers)
        out, unreadable, done = Path(config.out).expanduser(), [], 0
        partial = out.with_name(f".{out.name}.partial")
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(_heading(config.top_k))
                for images, positions in track(loader, "predicting", total=len(loader), unit="batches"):
                    rows = {}
                    if len(positions):
                        shares = model.logits(images).softmax(1).topk(config.top_k)
                        for where, p, k in zip(positions.tolist(), *(x.cpu().tolist() for x in shares), strict=True):
                            rows[where] = [
                                c for pair in zip(k, p, strict=True) for c in _cells(model.class_names, *pair)
                            ]
                    for row in range(done, min(done + 64, len(source))):
                        if row not in rows:
                            unreadable.append(source.name(row))
                        writer.writerow([source.name(row), *rows.get(row, [])])
                    done += 64
            partial.replace(out)
    if len(unreadable) == len(source):
        raise DataError(f"none of the {len(source)} images of {config.data} can be read, such as {unreadable[0]}.")
    log = Log()
    log.say(f"  {len(source) - len(unreadable):,} images  {out}")
    for name in unreadable[:5]:
        log.say(f"  unreadable  {name}")
    if len(unreadable) > 5:
        log.say(f"  and {len(unreadable) - 5:,} more, their rows have no class")
    return PredictReport(out, len(source) - len(unreadable), tuple(unreadable))


def _model_folder(path: Path) -> Path:
    """The folder itself, or the student of a run."""
    return path / "student" if (path / "student" / "task.json").is_file() else path


def _heading(top_k: int) -> list[str]:
    more = [word for k in range(2, top_k + 1) for word in (f"class_{k}", f"probability_{k}")]
    return ["path", "class", "probability", *more]


def _cells(names: tuple[str, ...], label: int, share: float) -> tuple[str, str]:
    return names[label], f"{share:.6f}"
