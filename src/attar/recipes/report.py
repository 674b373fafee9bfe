"""`attar report`: one page of a run, or of several side by side, with pictures of what teacher and student see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from attar.config import ReportConfig, TransferConfig
from attar.config.files import read_settings
from attar.data.loader import default_workers
from attar.data.transfer_set import is_transfer_set
from attar.errors import ConfigError, DataError, RunDirectoryError, UserError, meant_beside
from attar.evaluation.suite import means
from attar.export import read_task_model
from attar.models import Backbone
from attar.recipes.candidates import candidates_of_run
from attar.recipes.report_images import sample_images
from attar.recipes.report_maps import Pair, saved_head
from attar.recipes.report_pictures import class_token, find_out, joint_embedding
from attar.recipes.report_sets import section_of_set
from attar.recipes.transfer import load_task_teacher
from attar.reports.evaluation import evaluation_section
from attar.reports.page import is_own_page, write_report
from attar.reports.pictures import Findings
from attar.reports.published import known_models
from attar.reports.run import run_section
from attar.reports.section import Section
from attar.reports.transfer import transfer_section
from attar.utils.distributed import pick_device
from attar.utils.io import storage_errors
from attar.utils.progress import Log
from attar.utils.signals import polite_stop


def report(config: ReportConfig) -> Path:
    """Write the page and return its path.

    A run whose teacher, student or images are not at hand gets a page all the same, which says what is missing; images
    and a device that `config` names must be there.

    Raises:
        UserError: If a directory holds nothing to report on, `config` names what is not there, or the page cannot be
            written.
        Interrupted: If SIGINT or SIGTERM came.
    """
    log, published = Log(), known_models(config.published) if config.published else []
    folders = [_folder(given) for given in config.runs]
    page = _page(config, folders)
    with polite_stop(keeps=False):
        sections = [_section(folder, config, published, log) for folder in folders]
        with storage_errors(page):
            page.parent.mkdir(parents=True, exist_ok=True)
            write_report(page, sections)
    log.say(f"  report   {page}  {page.stat().st_size / 1e6:.2f} MB")
    return page


def _folder(given: str) -> Path:
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise RunDirectoryError(
            f"{given} is no directory.{meant_beside(folder)} Give those that attar distill, transfer … wrote to"
            " (--out)."
        )
    return folder


def _page(config: ReportConfig, folders: list[Path]) -> Path:
    """Where the page goes; over nothing that attar did not write."""
    if config.out is not None:
        page = Path(config.out).expanduser().resolve()
        if not page.suffix and not page.exists():
            page = page.with_name(f"{page.name}.html")
    elif len(folders) == 1 and not is_transfer_set(folders[0]):  # a set's own page shows more
        page = folders[0] / "report.html"
    else:
        page = Path("report.html").resolve()
    if page.exists() and not (page.is_file() and is_own_page(page)):
        raise ConfigError(f"{page} is there and no page of attar. Give another place with --out FILE.")
    return page


def _section(folder: Path, config: ReportConfig, published: list[str], log: Log) -> Section:
    log.say(f"  run      {folder}")
    if is_transfer_set(folder):
        return section_of_set(folder, log)
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        if any((folder / "results").glob("*.json")):
            return evaluation_section(folder, published=published, suites=means())
        raise RunDirectoryError(
            f"{folder} holds no run, no transfer set and no results. Give the --out of attar distill, distill-vl,"
            " transfer, curate or evaluate."
        )
    settings = read_settings(folder / "config.yaml")
    if "finetune" in settings:
        if not (folder / "compute.json").is_file():
            raise RunDirectoryError(
                f"{folder} is a run of attar transfer that is not finished; the same command goes on."
            )
        findings, missing = _try(_pair_of_transfer, folder, settings, config, log)
        return transfer_section(folder, findings=findings, missing=missing, price_per_hour=config.price_per_hour)
    findings, missing = _try(_pair_of_run, folder, settings, config, log)
    return run_section(
        folder,
        findings=findings,
        missing=missing,
        published=published,
        suites=means(),
        price_per_hour=config.price_per_hour,
    )


def _try(
    load: Callable[[Path, Mapping[str, Any], torch.device], Pair],
    folder: Path,
    settings: Mapping[str, Any],
    config: ReportConfig,
    log: Log,
) -> tuple[Findings | None, str]:
    """What there is to see, or why there is nothing."""
    if not config.pictures:
        return None, "they were not asked for (--no-pictures)."
    workers = default_workers() if config.workers is None else config.workers
    device = pick_device(config.device)
    given = sample_images(config, settings, workers=workers) if config.images else None
    try:
        pair = load(folder, settings, device)
        sample = given or sample_images(config, settings, workers=workers)
        return find_out(pair, sample, config, workers=workers), ""
    except UserError as error:
        if given is not None and isinstance(error, DataError):
            raise
        log.say(f"           without pictures: {error}")
        return None, str(error)


def _pair_of_run(run: Path, settings: Mapping[str, Any], device: torch.device) -> Pair:
    by_role = {candidate.role: candidate for candidate in candidates_of_run(run)}
    teacher, student = by_role["teacher"].load(None), by_role["student"].load(None)
    see = joint_embedding if "sentences" in settings else class_token
    head, told = saved_head(run, settings, student_dim=student.embed_dim, teacher_dim=teacher.embed_dim)
    return _placed(teacher, student, device, see=see, head=head, told=told)


def _pair_of_transfer(run: Path, settings: Mapping[str, Any], device: torch.device) -> Pair:
    """The teacher, adapted where it was, and the finetuned student."""
    config = TransferConfig.build(settings)
    if config.teacher is None or config.pretrain == "none":
        raise ConfigError("no teacher taught in this run, so that there is none to look at.")
    is_adapted = config.pretrain == "task"
    teacher = read_task_model(run / "adapt" / "teacher").backbone if is_adapted else load_task_teacher(config)
    student = read_task_model(run / "student").backbone
    told = "finetuning has moved it since a teacher taught it"
    return _placed(teacher, student, device, see=class_token, head=None, told=told)


def _placed(teacher: Backbone, student: Backbone, device: torch.device, **more: Any) -> Pair:
    return Pair(teacher.to(device).eval(), student.to(device).eval(), **more)
