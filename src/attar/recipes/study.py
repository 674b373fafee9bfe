"""`attar transfer --study`: ways of making a small model against each other, over numbers of labels and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
from PIL import Image

from attar._version import __version__
from attar.config import CurateConfig, EmbedConfig, StudyConfig
from attar.config.files import read_settings, to_yaml
from attar.config.study import Fetching, Row
from attar.curation.pool import Pool
from attar.data.labelled import Labelled
from attar.data.references import lasting
from attar.data.sources import open_source
from attar.data.transfer_set import IMAGES
from attar.errors import ConfigError, DataError, RunDirectoryError, did_you_mean
from attar.evaluation.splits import images_hash
from attar.recipes.curate import curate
from attar.recipes.embed import embed
from attar.recipes.task_images import TaskImages, open_task_images
from attar.recipes.transfer import TransferReport, transfer
from attar.reports.study import Study, study_table, write_study_page
from attar.utils.distributed import launched_ranks
from attar.utils.io import new_folder, read_json, sha256_text, write_json, write_text
from attar.utils.progress import Log
from attar.utils.run_directory import changed_settings, held_directory, open_run, refuse_changes
from attar.utils.signals import polite_stop, stop_if_requested

_FIGURES, _OF_RUN = "study.json", "cell.json"
_HASHES = "hashes"  # key of a run's figures: of the images it was made with


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
    and equal steps of transfer. Rows without one (scratch, pretrained) take finetuning's steps alone, unless
    `row_settings` give them more; and finetuning may end before its `max_steps` by its patience. A row that is done is
    not made again, so that more rows, labels or seeds may be asked for later.

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
        done, places = _done(out), _Places(config)
        if done and not config.resume_anyway:
            _check_settings(out, config)
        write_text(out / "config.yaml", to_yaml(config, comment=f"attar {__version__}"))
        log = Log(out / "log.txt")
        runs = [(row, _Cell(n, seed)) for n in config.labels for seed in config.seeds for row in config.table]
        log.say(f"  study    {len(config.rows)} rows, labels {_words(config.labels)}, seeds {_words(config.seeds)}")
        if config.unused:
            log.say(f"           given, and of no use to any of these rows: {_words(config.unused)}")
        if any(row.fetching for row in config.table):
            _embed_pool(config, out)
        for number, (row, cell) in enumerate(runs, 1):
            stop_if_requested("between two runs of a study")
            log.say(f"\n  run      {number} of {len(runs)}: {row.name}, {cell.name}")
            done[row.name, cell] = _run(config, row, cell, out, places, done, log)
            write_json(out / _FIGURES, {"kind": "attar transfer study", "runs": _in_order(done, runs)})
        figures = Study(tuple(_in_order(done, runs)))
        write_text(out / "study.md", study_table(figures))
        write_study_page(out / "report.html", figures, config)
        log.say(f"\n{study_table(figures)}\n  page     {out / 'report.html'}")
        return StudyReport(out, figures)


def _check_folder(out: Path) -> None:
    is_other = any(not entry.name.startswith(".") for entry in out.iterdir()) and not (out / "config.yaml").is_file()
    if is_other or (out / "run.json").is_file():
        raise RunDirectoryError(f"--out {out} holds something that is no study. Choose a new directory.")


def _check_settings(out: Path, config: StudyConfig) -> None:
    """What is done stands in the table beside what comes, so that both have the same student, steps and images.

    Raises:
        RunDirectoryError: If a setting that rows have in common is another; no teacher or pool is none of them.
    """
    before = read_settings(out / "config.yaml")
    unset = [name for name in ("teacher", "pool") if not (before.get(name) and getattr(config, name))]
    refuse_changes(
        changed_settings(out, config, but=("rows", "labels", "seeds", "row_settings", *unset)),
        f"--out {out} holds rows with other settings",
        remedy="Rows of one table differ by name and row_settings alone. Choose a new --out, or add --resume-anyway for"
        " a table of both.",
    )


def _words(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


_Done = dict[tuple[str, _Cell], dict[str, Any]]
"""Figures of the runs that are done, by row and cell."""


def _done(out: Path) -> _Done:
    """All that are in the folder, whoever asked for them."""
    found = [read_json(path) for path in sorted(out.glob(f"cells/*/*/{_OF_RUN}"))]
    return {(figures["row"], _Cell(figures["labels"], figures["seed"])): figures for figures in found}


def _in_order(done: _Done, runs: Sequence[tuple[Row, _Cell]]) -> list[dict[str, Any]]:
    """Those that are asked for, as far as they are done, then what was asked for before."""
    asked = [(row.name, cell) for row, cell in runs if (row.name, cell) in done]
    before = sorted(done.keys() - set(asked), key=lambda key: (key[1].labels, key[1].seed, key[0]))
    return [done[key] for key in (*asked, *before)]


class _Places:
    """Fingerprints of what rows transfer on where no set is fetched; each place is opened once in a study."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._known: dict[tuple[str, ...], str] = {}
        for row in config.table:  # a wrong place is told before anything is embedded
            try:
                self.of(row)
            except DataError as error:
                guess = did_you_mean(row.place or "", get_args(Fetching))
                raise DataError(f"row {row.name}: {error}{guess}") from None

    def of(self, row: Row) -> dict[str, str]:
        """By the word for it in `cell.json`; nothing where the row transfers on nothing, or on a set of its own."""
        if row.pretrain == "none" or row.fetching:
            return {}
        places = (row.place,) if row.place else self.config.pool
        if places not in self._known:
            self._known[places] = open_source(places, reindex=self.config.reindex).fingerprint
        return {"place" if row.place else "pool": self._known[places]}


def _run(
    config: StudyConfig, row: Row, cell: _Cell, out: Path, places: _Places, done: _Done, log: Log
) -> dict[str, Any]:
    """The figures of one row in one cell, made or read back."""
    folder, found = out / "cells" / cell.name / _file_name(row.name), done.get((row.name, cell))
    images = open_task_images(config.cell(row, cell.labels, cell.seed, pool=row.place, out=str(folder)))
    hashes = {name: images_hash(part) for name, part in {"train": images.train, **images.parts}.items()}
    for (name, of), figures in done.items():
        if of == cell:  # what stands beside each other in the table has the same labelled images
            own = places.of(row) if name == row.name else {}
            _check_images(figures, hashes | own, folder.with_name(_file_name(name)))
    hashes |= places.of(row)
    fetched = _fetch(config, row, cell, images, out)
    settings = config.cell(row, cell.labels, cell.seed, pool=str(fetched[0]) if fetched else row.place, out=str(folder))
    about = {"row": row.name, "labels": cell.labels, "seed": cell.seed, "set": fetched[1] if fetched else None}
    if fetched:
        hashes["set"] = _images_of_set(fetched[0])
    if found:
        with open_run(folder, settings, resume_anyway=config.resume_anyway):  # refuses other settings
            pass
        before = found.get(_HASHES, {})
        if found["set"] != about["set"] or before.get("set", hashes.get("set")) != hashes.get("set"):
            raise RunDirectoryError(f"{folder} was made with another transfer set. Choose a new --out.")
        unknown = [name for name in hashes if name not in before]
        log.say(f"           done before{f'; not written down then: images of {_words(unknown)}' if unknown else ''}")
        return found
    found = about | _figures(transfer(settings), images) | {_HASHES: hashes}
    write_json(folder / _OF_RUN, found)
    return found


def _check_images(figures: Mapping[str, Any], now: Mapping[str, str], folder: Path) -> None:
    """Refuse what is done if it was done with other images; runs of before hashes were kept pass.

    Raises:
        RunDirectoryError: If one part is another, or there is one more or less.
    """
    before = figures.get(_HASHES)
    names = dict.fromkeys(("train", "val", "test", *now))
    changed = [name for name in names if before and before.get(name) != now.get(name)]
    if changed:
        raise RunDirectoryError(
            f"{folder} was made with other images: those of {_words(changed)} have changed. Bring them back as they"
            " were, or choose a new --out."
        )


def _images_of_set(folder: Path) -> str:
    """Hash of a transfer set's images by part and name, in order."""
    rows = pq.read_table(folder / IMAGES, columns=["part", "id"]).to_pylist()
    return sha256_text(json.dumps([[row["part"], row["id"]] for row in rows]))


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
        weights=config.teacher_weights,
        trust_torchscript=config.trust_torchscript,
        **config.sets.model_dump(),
    )
    known = folder / "manifest.json"
    manifest = read_json(known) if known.is_file() else None
    if manifest is None or not _is_of(manifest, settings):
        manifest = curate(settings).manifest
    told = ("images", "fetched", "shortfall", "removed", "sources")
    return folder, {name: manifest[name] for name in told} | {"queries": manifest["queries"]["vectors"]}


def _is_of(manifest: Mapping[str, Any], settings: CurateConfig) -> bool:
    """Whether a set was chosen by these settings from this pool for these labelled images."""
    asked = settings.model_dump(mode="json")
    train = lasting(str(Path(settings.queries or "") / "train"))
    of_pool = manifest["pool"]["fingerprint"] == Pool.open(settings.pool).fingerprint
    return (
        of_pool
        and [train] in [place["references"] for place in manifest["places"]]
        and all(asked[name] == value for name, value in manifest["settings"].items())
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
