"""`attar report`: one page of a run, or of several side by side, with pictures of what teacher and student see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from attar.config import ReportConfig
from attar.config.files import read_settings
from attar.data.loader import default_workers
from attar.data.transfer_set import is_transfer_set
from attar.errors import ConfigError, RunDirectoryError, UserError
from attar.evaluation.suite import means
from attar.export import read_task_model
from attar.models import Backbone
from attar.recipes.candidates import candidates_of_run
from attar.recipes.report_images import sample_images
from attar.recipes.report_pictures import Pair, class_token, find_out, joint_embedding, saved_head
from attar.recipes.report_sets import section_of_set
from attar.reports.evaluation import evaluation_section
from attar.reports.page import write_report
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

    A run whose teacher, student or images are not at hand gets a page all the same, which says what is missing.

    Raises:
        UserError: If a directory holds nothing to report on, or the page cannot be written.
        Interrupted: If SIGINT or SIGTERM came.
    """
    log, published = Log(), known_models(config.published) if config.published else []
    folders = [_folder(given) for given in config.runs]
    page = _page(config, folders)
    with polite_stop():
        sections = [_section(folder, config, published, log) for folder in folders]
        with storage_errors(page):
            page.parent.mkdir(parents=True, exist_ok=True)
            write_report(page, sections)
    log.say(f"  report   {page}  {page.stat().st_size / 1e6:.1f} MB")
    return page


def _folder(given: str) -> Path:
    folder = Path(given).expanduser().resolve()
    if not folder.is_dir():
        raise RunDirectoryError(f"{given} is no directory. Give those that attar distill, transfer … wrote to (--out).")
    return folder


def _page(config: ReportConfig, folders: list[Path]) -> Path:
    """Where the page goes; several runs' goes over no page that attar did not write."""
    if config.out is not None:
        return Path(config.out).expanduser().resolve()
    if len(folders) == 1 and not is_transfer_set(folders[0]):  # a set's own page shows more
        return folders[0] / "report.html"
    page = Path("report.html").resolve()
    if page.is_file() and '<meta name="generator" content="attar">' not in page.read_text(errors="replace")[:2000]:
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
        return transfer_section(folder, findings=findings, missing=missing)
    findings, missing = _try(_pair_of_run, folder, settings, config, log)
    return run_section(
        folder, findings=findings, missing=missing, published=published, price_per_hour=config.price_per_hour
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
    try:
        sample = sample_images(config, settings, workers=workers)
        pair = load(folder, settings, pick_device(config.device))
        return find_out(pair, sample, config, workers=workers), ""
    except UserError as error:
        log.say(f"           without pictures: {error}")
        return None, str(error)


def _pair_of_run(run: Path, settings: Mapping[str, Any], device: torch.device) -> Pair:
    by_role = {candidate.role: candidate for candidate in candidates_of_run(run)}
    teacher, student = by_role["teacher"].load(None), by_role["student"].load(None)
    see = joint_embedding if "sentences" in settings else class_token
    head, told = saved_head(run, settings, student_dim=student.embed_dim, teacher_dim=teacher.embed_dim)
    return _placed(teacher, student, device, see=see, head=head, told=told)


def _pair_of_transfer(run: Path, settings: Mapping[str, Any], device: torch.device) -> Pair:
    """The adapted teacher and the finetuned student."""
    folder = run / "adapt" / "teacher"
    if not folder.is_dir():
        raise ConfigError("no teacher was adapted in this run, so that there is none to look at.")
    teacher, student = read_task_model(folder).backbone, read_task_model(run / "student").backbone
    told = "the run taught it by no head on patch tokens"
    return _placed(teacher, student, device, see=class_token, head=None, told=told)


def _placed(teacher: Backbone, student: Backbone, device: torch.device, **more: Any) -> Pair:
    return Pair(teacher.to(device).eval(), student.to(device).eval(), **more)
