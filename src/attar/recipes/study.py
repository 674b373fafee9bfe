"""`attar transfer --study`: ways of making a small model against each other, over numbers of labels and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from attar._version import __version__
from attar.config import CurateConfig, EmbedConfig, StudyConfig
from attar.config.files import to_yaml
from attar.config.study import Row
from attar.data.labelled import Labelled
from attar.data.references import lasting
from attar.errors import ConfigError, RunDirectoryError
from attar.recipes.curate import curate
from attar.recipes.embed import embed
from attar.recipes.task_images import TaskImages, open_task_images
from attar.recipes.transfer import TransferReport, transfer
from attar.reports.study import Study, study_table, write_study_page
from attar.utils.distributed import launched_ranks
from attar.utils.io import new_folder, read_json, sha256_text, write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import held_directory, open_run
from attar.utils.signals import polite_stop, stop_if_requested

_FIGURES = "study.json"


@dataclass(frozen=True)
class StudyReport:
    """What a study came to.

    Attributes:
        out: Its folder, with `study.md`, `report.html` and `study.json`.
        study: All figures.
    """

    out: Path
    study: Study


@dataclass(frozen=True)
class _Cell:
    """One number of labels with one seed: what all rows have in common."""

    labels: int
    seed: int

    @property
    def name(self) -> str:
        return f"labels-{self.labels}-seed-{self.seed}"


def study(config: StudyConfig) -> StudyReport:
    """Make every student of a study, and write table, page and figures; the same command goes on where it was stopped.

    Within a cell (a number of labels and a seed) all rows have the same labelled images, the same images to choose by,
    and equal steps of the student. A row that is done is not made again, so that more rows, labels or seeds may be
    asked for later.

    Raises:
        UserError: If models, data or settings do not work out, or the folder holds something else.
        Interrupted: If SIGINT or SIGTERM came; what was done is kept.
    """
    if launched_ranks() > 1:
        raise ConfigError(
            f"a study runs in one process, and {launched_ranks()} ranks were launched. Start it without torchrun."
        )
    with polite_stop(), held_directory(Path(config.out)) as out:
        _check_folder(out)
        write_text(out / "config.yaml", to_yaml(config, comment=f"attar {__version__}"))
        log = Log(out / "log.txt")
        cells = [_Cell(labels, seed) for labels in config.labels for seed in config.seeds]
        log.say(f"  study    {len(config.rows)} rows, labels {_words(config.labels)}, seeds {_words(config.seeds)}")
        if any(row.fetching for row in config.table):
            _embed_pool(config, out)
        done: list[dict[str, Any]] = []
        for number, (cell, row) in enumerate((cell, row) for cell in cells for row in config.table):
            stop_if_requested("between two runs of a study")
            log.say(f"\n  run      {number + 1} of {len(cells) * len(config.rows)}: {row.name}, {cell.name}")
            done.append(_run(config, row, cell, out, log))
            write_json(out / _FIGURES, {"kind": "attar transfer study", "runs": done})
        figures = Study(tuple(done))
        write_text(out / "study.md", study_table(figures))
        write_study_page(out / "report.html", figures, config)
        log.say(f"\n{study_table(figures)}\n  page     {out / 'report.html'}")
        return StudyReport(out, figures)


def _check_folder(out: Path) -> None:
    is_other = any(not entry.name.startswith(".") for entry in out.iterdir()) and not (out / "config.yaml").is_file()
    if is_other or (out / "run.json").is_file():
        raise RunDirectoryError(f"--out {out} holds something that is no study. Choose a new directory.")


def _words(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _run(config: StudyConfig, row: Row, cell: _Cell, out: Path, log: Log) -> dict[str, Any]:
    """The figures of one row in one cell, made or read back."""
    folder = out / "cells" / cell.name / _file_name(row.name)
    images = open_task_images(config.cell(row, cell.labels, cell.seed, pool=None, out=str(folder)))
    fetched = _fetch(config, row, cell, images, out)
    settings = config.cell(row, cell.labels, cell.seed, pool=str(fetched[0]) if fetched else row.place, out=str(folder))
    about = {"row": row.name, "labels": cell.labels, "seed": cell.seed, "set": fetched[1] if fetched else None}
    known = folder / "cell.json"
    if known.is_file():
        with open_run(folder, settings, resume_anyway=config.resume_anyway):  # refuses other settings
            found: dict[str, Any] = read_json(known)
        if found["set"] != about["set"]:
            raise RunDirectoryError(f"{folder} was made with another transfer set. Choose a new --out.")
        log.say("           done before")
        return found
    found = about | _figures(transfer(settings), images)
    write_json(known, found)
    return found


def _figures(report: TransferReport, images: TaskImages) -> dict[str, Any]:
    """What is told of one run: accuracies by stage and metric, and what was spent."""
    part = "val" if images.test is None else "test"
    of_part = [result for result in report.results if result.protocol["part"] == part]
    scores: dict[str, dict[str, float]] = {}
    for result in of_part:
        scores.setdefault(result.protocol["stage"], {})[result.metric] = round(result.value, 6)
    stages = report.compute["stages"]
    return {
        "part": part,
        "images": of_part[0].n,
        "scores": scores,
        "macs": sum(stage["macs"] for stage in stages.values()),
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "student_steps": sum(stages[name]["steps"] for name in ("transfer", "finetune") if name in stages),
        "stages": stages,
    }


# --- transfer sets ---------------------------------------------------------------------------------------------------


def _embed_pool(config: StudyConfig, out: Path) -> None:
    """The pool's vectors by the teacher, which all sets are fetched by."""
    assert config.teacher is not None, "a study has a teacher"
    embed(
        EmbedConfig(
            model=config.teacher,
            weights=config.teacher_weights,
            img_size=config.teacher_img_size or config.img_size,
            data=config.pool,
            out=str(out / "pool"),
            device=config.device,
            workers=config.workers,
            pos_embed=config.pos_embed,
            trust_torchscript=config.trust_torchscript,
            seed=config.seed,
            max_bad_share=config.max_bad_share,
            reindex=config.reindex,
        )
    )


def _fetch(
    config: StudyConfig, row: Row, cell: _Cell, images: TaskImages, out: Path
) -> tuple[Path, dict[str, Any]] | None:
    """The row's transfer set and what is told of it; None where it fetches none."""
    if row.fetching is None:
        return None
    task = _labelled_folder(images, out / "task" / cell.name)
    folder = out / "sets" / cell.name / row.fetching
    settings = CurateConfig(
        pool=str(out / "pool"),
        queries=str(task),
        strategy="random" if row.fetching == "random_by_place" else row.fetching,
        balance_sources=row.fetching == "random_by_place",
        out=str(folder),
        seed=cell.seed,
        workers=config.workers,
        device=config.device,
        **config.sets.model_dump(),
    )
    known = folder / "manifest.json"
    manifest = read_json(known) if known.is_file() else None
    if manifest is None or not _is_of(manifest, settings):
        manifest = curate(settings).manifest
    told = ("images", "fetched", "shortfall", "removed", "sources")
    return folder, {name: manifest[name] for name in told} | {"queries": manifest["queries"]["vectors"]}


def _is_of(manifest: Mapping[str, Any], settings: CurateConfig) -> bool:
    """Whether a set was chosen by these settings for these labelled images."""
    asked = settings.model_dump(mode="json")
    train = lasting(str(Path(settings.queries or "") / "train"))
    return [train] in [place["references"] for place in manifest["places"]] and all(
        asked[name] == value for name, value in manifest["settings"].items()
    )


def _labelled_folder(images: TaskImages, folder: Path) -> Path:
    """The labelled images as a folder with parts, for curation to read: links to files, or copies of what is in shards.

    Curation guards what lies in `val` and `test`. The folder's name tells the images.
    """
    folder = folder.with_name(f"{folder.name}-{sha256_text(repr(_fingerprints(images)))[:8]}")
    if not folder.is_dir():
        with new_folder(folder) as temporary:
            for name, part in {"train": images.train, **images.parts}.items():
                _write_part(part, temporary / name)
    return folder


def _fingerprints(images: TaskImages) -> list[str]:
    return [images.train.fingerprint, *(part.fingerprint for part in images.parts.values())]


def _write_part(part: Labelled, folder: Path) -> None:
    for number, (row, label) in enumerate(zip(part.rows.tolist(), part.labels.tolist(), strict=True)):
        target = folder / f"{label:05}-{_file_name(part.class_names[label])}" / f"{number:07}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path = Path(part.source.uri(row))
        if path.is_file():
            target.with_suffix(path.suffix).symlink_to(path)
            continue
        content = part.source.read(row)
        if isinstance(content, bytes):
            target.with_suffix(".jpg").write_bytes(content)  # readers go by content, not by name
        else:
            Image.fromarray(content).save(target.with_suffix(".png"))


def _file_name(name: str) -> str:
    """A name that any file system takes."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip(".") or "-"
