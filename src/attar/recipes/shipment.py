"""What `attar export` has to ship: the model of a run, a folder or a reference, and all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attar.config import EvaluateConfig, ExportConfig
from attar.config.files import read_settings
from attar.errors import ConfigError
from attar.export import read_task_model
from attar.models import (
    Backbone,
    Licence,
    TaskModel,
    TextTower,
    load_backbone,
    load_text_tower,
    terms_of,
)
from attar.models.two_towers import has_text_tower
from attar.recipes.candidates import candidates
from attar.recipes.describe import describe, licence_noted
from attar.recipes.predict import is_task_model, is_transfer, model_folder
from attar.utils.io import read_json

_ABOUT = "about.json"
_OF_THE_STUDENT = ("student weights", "weights kept", "verdict")  # and of no other model that a run leaves


@dataclass(frozen=True)
class Shipment:
    """A model to export.

    Attributes:
        name: Of the run, folder or reference, for people.
        model: What is written.
        facts: Where it comes from, a row each.
        licence: Of the weights, or of those that a run made them from; None where they are nobody's.
        text: The text tower beside an image tower.
        settings: Of the run; nothing for other models.
    """

    name: str
    model: Backbone | TaskModel
    facts: Mapping[str, str]
    licence: Licence | None
    text: TextTower | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return self.model if isinstance(self.model, Backbone) else self.model.backbone

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the logits; nothing for a backbone."""
        return () if isinstance(self.model, Backbone) else self.model.class_names


def open_shipment(config: ExportConfig) -> Shipment:
    """Load what `config.model` names.

    Raises:
        UserError: If there is no such model, or a run has none yet.
    """
    path = Path(config.model).expanduser()
    run = _run_of(path)
    settings = {} if run is None else read_settings(run / "config.yaml")
    if is_task_model(path) or is_task_model(path / "student") or is_transfer(path):
        return _task_model(config, path, settings)
    if config.reference is not None:
        raise ConfigError(f"reference is {config.reference}, and {config.model} is no task model. Leave it out.")
    if run is not None and run == path:
        return _of_run(config, run, settings)
    backbone = load_backbone(
        config.model,
        weights=config.weights,
        img_size=config.img_size,
        pos_embed=config.pos_embed,
        trust_torchscript=config.trust_torchscript,
        seed=config.seed,
    )
    text = None
    if has_text_tower(config.model):
        text = load_text_tower(
            config.model, weights=config.weights, trust_torchscript=config.trust_torchscript, seed=config.seed
        )
    facts = {"model": describe(backbone, is_whole=False)} | _hash_of(backbone) | _about(run, of=path)
    licence = terms_of(backbone.source) if run is None else licence_noted(_about(run))
    return Shipment(_title(config.model), backbone, facts, licence, text, settings)


def _of_run(config: ExportConfig, run: Path, settings: Mapping[str, Any]) -> Shipment:
    """The student of `attar distill` or `attar distill-vl`."""
    asked = {"model": config.model, "tasks": ("knn",), "out": config.out, "roles": ("student",)}
    (student,) = candidates(EvaluateConfig.build(asked | {"weights": config.weights, "img_size": config.img_size}))
    backbone = student.load(config.img_size)
    text = student.load_text() if student.load_text is not None else None
    return Shipment(run.name, backbone, _about(run) | _hash_of(backbone), licence_noted(_about(run)), text, settings)


def _task_model(config: ExportConfig, path: Path, settings: Mapping[str, Any]) -> Shipment:
    if config.weights != "pretrained" or config.img_size is not None:
        raise ConfigError(
            f"{config.model} is a task model: it has weights and an input size of its own. Leave out --weights and"
            " --img-size."
        )
    folder, run = model_folder(path), _run_of(path)
    model = read_task_model(folder, reference=config.reference)
    facts = {
        "model": describe(model.backbone),
        "task": f"{model.task}, {len(model.class_names)} classes",
        **_about(run, of=folder),
        **_hash_of(model.backbone),
    }
    return Shipment(_title(config.model), model, facts, licence_noted(_about(run)), settings=settings)


def _run_of(path: Path) -> Path | None:
    """The run that a folder is, or whose student or stage's model it is."""
    places = (path, *list(path.parents)[:2]) if path.is_dir() else ()
    runs = [place for place in places if (place / "run.json").is_file()]
    told = [place for place in runs if (place / _ABOUT).is_file()]  # a stage is a run, of which its own run tells
    return next(iter(told or runs), None)


def _title(model: str) -> str:
    path = Path(model).expanduser()
    return f"{path.parent.name}/{path.name}" if path.is_dir() else model


def _about(run: Path | None, *, of: Path | None = None) -> dict[str, str]:
    """What the run says of where its student comes from, without what is true of that one alone for another model."""
    file = None if run is None else run / _ABOUT
    if file is None or not file.is_file():
        return {}
    others = () if of in (None, run, file.with_name("student")) else _OF_THE_STUDENT
    return {
        name: str(value) for name, value in read_json(file).items() if isinstance(value, str) and name not in others
    }


def _hash_of(backbone: Backbone) -> dict[str, str]:
    """The last link of the chain: the weights that are exported."""
    source = backbone.source
    return {"exported weights": f"{Path(source.file).name}, sha256 {source.sha256}"} if source.file else {}
