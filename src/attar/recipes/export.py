"""`attar export`: a model for other tools, compared on images from file to vector, quantised, timed, described."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from attar._version import __version__
from attar.config import ExportConfig
from attar.config.export import Output
from attar.data.loader import default_workers
from attar.errors import ConfigError, DataError, RunDirectoryError
from attar.export.card import RUN_ONNX, RUN_TORCH, export_card, usage_of, write_beside
from attar.export.libraries import Run, check_library, right_features, run_by_library, write_for_library
from attar.export.onnx import OnnxModel, check_onnx, write_onnx
from attar.export.parity import Outputs, Parity, compare
from attar.export.preprocess import prepare
from attar.export.program import Deployed, save_program, traced
from attar.export.quantise import quantise
from attar.export.speed import BATCHES as SIZES
from attar.export.speed import Speed, machine, speed_table, speeds
from attar.export.student import LOADING, library_of
from attar.models import TaskModel
from attar.recipes.export_images import calibration_batches, images_to_compare, views_of
from attar.recipes.export_judging import Judged, check_drop, judge_files, judged_table
from attar.recipes.export_text import write_text_tower
from attar.recipes.shipment import Shipment, open_shipment
from attar.utils.io import new_folder, sha256_file, write_json, write_text
from attar.utils.progress import Log
from attar.utils.signals import polite_stop, stop_if_requested

_ABOUT = "export.json"
_FULL, _INT8, _PROGRAM = "model.onnx", "model_int8.onnx", "model.pt2"


@dataclass
class ExportReport:
    """What was written, and how it was proven.

    Attributes:
        out: The folder.
        parity: Of each file, by name: how far it lies from the model.
        judged: k-NN or accuracy of each file, by name; empty without labelled images.
        speed: Of each way to run the model, by name.
    """

    out: Path
    parity: dict[str, Parity] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    speed: dict[str, Speed] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """One export under way: what is asked for, what is shipped, the folder that is being filled."""

    config: ExportConfig
    shipment: Shipment
    folder: Path
    log: Log
    report: ExportReport

    @property
    def crop_pct(self) -> float:
        """As asked for, else as the run judged its student, else 1."""
        settings = self.shipment.settings
        judged = settings.get("crop_pct") or settings.get("monitoring", {}).get("crop_pct")
        return float(self.config.crop_pct or judged or 1.0)


def export(config: ExportConfig) -> ExportReport:
    """Write the model as `config` says; what does not say the same on images is not written at all.

    Raises:
        UserError: If model, images or settings do not work out.
        ExportError: If the model cannot be written so, or what was written says something else.
        Interrupted: If SIGINT or SIGTERM came; nothing is left behind.
    """
    out = Path(config.out).expanduser()
    with polite_stop(keeps=False):
        _check(config, out)
        shipment, log = open_shipment(config), Log()
        log.say(f"  model    {shipment.name}  {shipment.backbone.num_parameters / 1e6:.1f}M")
        log.say(f"  licence  {shipment.licence.told if shipment.licence else 'none (random weights)'}")
        with new_folder(out) as folder:
            job = _Job(config, shipment, folder, log, ExportReport(out))
            if config.to in ("timm", "transformers"):
                _write_for_library(job)
            else:
                _write_program(job)
        log.say(f"  written  {out}")
        return job.report


def _check(config: ExportConfig, out: Path) -> None:
    """What can be refused before anything is loaded."""
    if out.exists() and not (out / _ABOUT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunDirectoryError(
            f"--out {out} is there and no export of attar's (it holds no {_ABOUT}); an export replaces what stands in"
            " its folder. Name a new one."
        )
    if config.to == "onnx":
        check_onnx()
    else:
        wrong = [name for name in ("calibration", "knn", "max_drop") if getattr(config, name) is not None]
        if wrong:
            raise ConfigError(f"{wrong[0]} is set and to is {config.to}: int8 and its k-NN are for --to onnx. Drop it.")
    if config.max_drop is not None and config.calibration is None:
        raise ConfigError(f"max_drop is {config.max_drop:g}, and no --calibration images ask for int8. Give some.")
    if config.to in ("timm", "transformers") and (config.outputs or config.preprocess == "inside"):
        raise ConfigError(f"outputs and preprocess shape traced files, not a folder of {config.to}. Leave them out.")


# --- one traced file -------------------------------------------------------------------------------------------------


def _write_program(job: _Job) -> None:
    """`model.onnx` or `model.pt2` with all that goes beside it."""
    config, shipment, folder = job.config, job.shipment, job.folder
    model = shipment.model
    outputs: tuple[Output, ...] = config.outputs or (("logits",) if isinstance(model, TaskModel) else ("embedding",))
    module = Deployed(model, outputs, normalises=config.preprocess == "inside")
    is_onnx = config.to == "onnx"
    place = _place_to_judge(job, outputs[0]) if is_onnx else None
    settings = write_beside(
        folder,
        shipment.backbone,
        script=("run_onnx.py", RUN_ONNX) if is_onnx else ("run_torch.py", RUN_TORCH),
        outputs=outputs,
        crop_pct=job.crop_pct,
        normalise=config.preprocess,
        class_names=shipment.class_names if "logits" in outputs else (),
    )
    images = images_to_compare(config, shipment, job.log)
    calibration = None if config.calibration is None else calibration_batches(config, settings)
    stop_if_requested("exporting")
    program = traced(module, module.example())
    taken = [prepare(io.BytesIO(image), settings) for image in images]
    right = _right_outputs(job, outputs, images)
    if is_onnx:
        write_onnx(folder / _FULL, program, inputs=["image"], outputs=outputs)
        _prove(job, _FULL, OnnxModel(folder / _FULL, settings), taken, right)
        if calibration is not None:
            quantise(folder / _FULL, folder / _INT8, calibration)
            small = compare(OnnxModel(folder / _INT8, settings), taken, right)
            small.check_finite(what=_INT8)
            job.report.parity[_INT8] = small
            job.log.say(f"  int8     {small.told}")
        _judge(job, settings, place)
    else:
        save_program(folder / _PROGRAM, program)
        again = torch.export.load(folder / _PROGRAM).module()
        _prove(job, _PROGRAM, lambda x: [y.detach().numpy() for y in again(torch.from_numpy(x))], taken, right)
    stop_if_requested("exporting")
    if config.repeats:
        _time(job, module, settings)
    measured = {}
    if shipment.text is not None and is_onnx:
        measured["Text tower"] = write_text_tower(
            job.folder, shipment.text, job.report.parity, config.tolerance, job.log
        )
    _describe(job, usage_of(settings, target=config.to), measured)


def _right_outputs(job: _Job, outputs: tuple[Output, ...], images: list[bytes]) -> Outputs:
    """What attar itself says of the images, from their files."""
    model, backbone = job.shipment.model, job.shipment.backbone
    views = views_of(images, img_size=backbone.img_size, crop_pct=job.crop_pct)
    made = {
        "embedding": lambda: backbone.embed(views),
        "patch_tokens": lambda: backbone.tokens(views).patch,
        "logits": lambda: model.logits(views) if isinstance(model, TaskModel) else views,
    }
    return [made[name]().numpy() for name in outputs]


def _prove(job: _Job, name: str, run: Run, taken: list[NDArray[Any]], right: Outputs) -> None:
    parity = compare(run, taken, right)
    job.log.say(f"  same?    {name}: {parity.told}")
    parity.check(job.config.tolerance, what=name)
    job.report.parity[name] = parity


def _place_to_judge(job: _Job, first: Output) -> str | None:
    """Labelled images to judge the files by; None where there are none, or the first output is nothing to judge.

    Raises:
        ConfigError: If judging was asked for, by --knn or --max-drop, and cannot be.
    """
    config, shipment = job.config, job.shipment
    is_vector = first == "embedding" or (first, getattr(shipment.model, "task", "")) == ("logits", "classification")
    if config.knn is not None and not is_vector:
        raise ConfigError(
            f"knn is {config.knn}, and the first output, {first}, is no vector that k-NN or classes could judge."
            " Name embedding first in --outputs, or leave --knn out."
        )
    place = config.knn or (shipment.settings.get("monitor") if config.calibration is not None else None)
    if config.max_drop is not None and (place is None or not is_vector):
        why = "no labelled images are known" if is_vector else f"the first output, {first}, is no vector to judge by"
        remedy = "Give some with --knn" if is_vector else "Name embedding first in --outputs"
        raise ConfigError(
            f"max_drop is {config.max_drop:g}, and what int8 loses cannot be measured: {why}."
            f" {remedy}, or leave --max-drop out."
        )
    return str(place) if place is not None and is_vector else None


def _judge(job: _Job, settings: Mapping[str, Any], place: str | None) -> None:
    """k-NN, or a classifier's accuracy, of the files, where there are labelled images to judge them by."""
    config, shipment, folder = job.config, job.shipment, job.folder
    names = [name for name in (_FULL, _INT8) if (folder / name).is_file()]
    if place is None:
        if len(names) > 1:
            job.log.say("  judged   nothing: what int8 costs was not measured: give labelled images with --knn")
        return
    files = {name: OnnxModel(folder / name, settings) for name in names}
    try:
        job.report.judged = judge_files(
            files,
            place,
            class_names=shipment.class_names if settings["outputs"][0] == "logits" else (),
            crop_pct=job.crop_pct,
            limit=config.knn_images,
            seed=config.seed,
            workers=default_workers() if config.workers is None else config.workers,
        )
    except DataError as error:
        if config.knn is not None or config.max_drop is not None:
            raise
        job.log.say(f"  judged   nothing by the run's monitor: {error} Give labelled images with --knn")
        return
    for name, judged in job.report.judged.items():
        job.log.say(f"  judged   {name}: {judged.kind} {100 * judged.value:.1f} ({judged.images:,} images)")
    if len(names) > 1:
        drop = check_drop(job.report.judged, _FULL, _INT8, most=config.max_drop)
        job.log.say(f"           int8 loses {drop:.1f} points")


def _time(job: _Job, module: Deployed, settings: Mapping[str, Any]) -> None:
    """attar's model and the files, each in turn."""
    files = {name: OnnxModel(job.folder / name, settings) for name in (_FULL, _INT8) if (job.folder / name).is_file()}
    example = module.example()[:1]
    batches = {size: example.expand(size, *example.shape[1:]).contiguous() for size in SIZES}

    def of(run: Run) -> Callable[[int], object]:
        return lambda size: run(batches[size].numpy())

    ways: dict[str, Callable[[int], object]] = {"torch": lambda size: module(batches[size])}
    ways |= {name: of(model) for name, model in files.items()}
    with torch.inference_mode():
        job.report.speed = speeds(ways, repeats=job.config.repeats)
    for name, speed in job.report.speed.items():
        one, many = speed.milliseconds.values()
        job.log.say(
            f"  speed    {name:16}{one:8.2f} ms an image, {many:8.1f} ms for 32 ({speed.per_second(32):,.0f} a second)"
            + speed.unsteady
        )


# --- a library's folder ----------------------------------------------------------------------------------------------


def _write_for_library(job: _Job) -> None:
    """`config.json` and `model.safetensors`, loaded again by the library alone and compared."""
    config, model, backbone = job.config, job.shipment.model, job.shipment.backbone
    target: Any = config.to
    check_library(model, target)
    write_for_library(job.folder, model, licence=job.shipment.licence, crop_pct=job.crop_pct)
    preprocessing = {"img_size": backbone.img_size, "crop_pct": job.crop_pct, "normalise": "beside"}
    preprocessing |= {"mean": backbone.preprocess.mean, "std": backbone.preprocess.std}
    images = images_to_compare(config, job.shipment, job.log)
    taken = [prepare(io.BytesIO(image), preprocessing) for image in images]
    right = right_features(model, views_of(images, img_size=backbone.img_size, crop_pct=job.crop_pct))
    run = run_by_library(job.folder, target, classifies=isinstance(model, TaskModel))
    _prove(job, config.to, run, taken, right)
    _describe(job, LOADING["transformers" if config.to == "transformers" else library_of(backbone)], {})


# --- what is said of it ----------------------------------------------------------------------------------------------


def _describe(job: _Job, usage: str, measured: Mapping[str, str]) -> None:
    """`README.md` and `export.json`."""
    report, config, shipment = job.report, job.config, job.shipment
    files = {path.name: path.stat().st_size for path in sorted(job.folder.iterdir())}
    told = {"Compared with attar": "\n".join(f"- {name}: {parity.told}." for name, parity in report.parity.items())}
    if report.judged:
        told["Judged"] = judged_table(report.judged)
    if report.speed:
        told["Speed"] = speed_table(report.speed, files).rstrip()
    licence = shipment.licence
    card = export_card(
        f"{shipment.name} as {config.to}",
        usage=usage,
        facts=dict(shipment.facts) | {"exported with": f"attar {__version__}, torch {torch.__version__}"},
        files=files,
        measured=told | dict(measured),
        licence=licence.in_sentences() if licence else "The weights are random and nobody's.",
    )
    write_text(job.folder / "README.md", card)
    about = {
        "model": shipment.name,
        "to": config.to,
        "facts": dict(shipment.facts),
        "licence": licence.name if licence else None,
        "files": {name: {"bytes": size, "sha256": sha256_file(job.folder / name)} for name, size in files.items()},
        "parity": {name: asdict(parity) for name, parity in report.parity.items()},
        "judged": {name: asdict(judged) for name, judged in report.judged.items()},
        "speed": {name: asdict(speed) | {"steady": not speed.unsteady} for name, speed in report.speed.items()},
        "machine": machine(),
        "versions": {"attar": __version__, "torch": torch.__version__},
    }
    write_json(job.folder / _ABOUT, about)
