"""Whom `attar evaluate` judges: of a run its student, its teacher and a random student, else the model named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attar.config import DistillConfig, EvaluateConfig
from attar.config.files import read_settings
from attar.errors import ConfigError
from attar.models import Backbone, TextTower, load_backbone, load_text_tower
from attar.models.references import parse_reference
from attar.reports import Role

_IMG_SIZE = 224


@dataclass(frozen=True)
class Candidate:
    """A model to be judged.

    Attributes:
        role: Whose figures these are.
        name: Model reference, for people.
        load: Makes the backbone, on the CPU.
        load_text: Makes its text tower, on the CPU; None where it has none.
    """

    role: Role
    name: str
    load: Callable[[], Backbone]
    load_text: Callable[[], TextTower] | None = None


def candidates(config: EvaluateConfig) -> list[Candidate]:
    """The models to judge, in the order of the table.

    Raises:
        ConfigError: If a role is asked for that the model does not have, or settings of a run are given anew.
    """
    run = Path(config.model).expanduser()
    found = _of_run(config, run) if (run / "run.json").is_file() else _of_model(config)
    roles = config.roles or [candidate.role for candidate in found if candidate.role != "random" or len(found) > 2]
    known = {candidate.role: candidate for candidate in found}
    unknown = next((role for role in roles if role not in known), None)
    if unknown is not None:
        raise ConfigError(f"role {unknown}: {config.model} has {', '.join(known)}. Teachers belong to runs.")
    return [known[role] for role in dict.fromkeys(roles)]


def _of_model(config: EvaluateConfig) -> list[Candidate]:
    def load(weights: str) -> Callable[[], Backbone]:
        return lambda: load_backbone(
            config.model,
            weights=weights,
            img_size=config.img_size or _IMG_SIZE,
            pos_embed=config.pos_embed,
            trust_torchscript=config.trust_torchscript,
            seed=config.seed,
        )

    def text(weights: str) -> Callable[[], TextTower] | None:
        return _text(config.model, weights, trust_torchscript=config.trust_torchscript, seed=config.seed)

    return [
        Candidate("model", config.model, load(config.weights), text(config.weights)),
        Candidate("random", config.model, load("random"), text("random")),
    ]


def _of_run(config: EvaluateConfig, run: Path) -> list[Candidate]:
    if config.weights != "pretrained":
        raise ConfigError(f"weights is {config.weights}, and {run} is a run with a student of its own. Leave it out.")
    if not (run / "student" / "config.json").is_file():
        raise ConfigError(f"run {run} has no student yet. Let it end (the same command goes on), or name a model.")
    trained = DistillConfig.build(read_settings(run / "config.yaml"))
    img_size = config.img_size or trained.img_size

    def student() -> Backbone:
        return load_backbone(str(run / "student"), img_size=img_size)

    def teacher() -> Backbone:
        return load_backbone(
            trained.teacher,
            weights=trained.teacher_weights,
            img_size=config.img_size or trained.teacher_img_size or trained.img_size,
            pos_embed=trained.pos_embed,
            trust_torchscript=trained.trust_torchscript,
            seed=trained.seed,
        )

    def random() -> Backbone:
        backbone = load_backbone(trained.student, weights="random", img_size=img_size, seed=trained.seed)
        backbone.normalise_with(student().preprocess)
        return backbone

    text = _text(
        trained.teacher,
        trained.teacher_weights,
        trust_torchscript=trained.trust_torchscript,
        seed=trained.seed,
    )
    return [
        Candidate("student", trained.student, student),
        Candidate("teacher", trained.teacher, teacher, text),
        Candidate("random", trained.student, random),
    ]


def _text(reference: str, weights: str, *, trust_torchscript: bool, seed: int) -> Callable[[], TextTower] | None:
    """What loads the text tower of a reference, None for models without one that attar reads."""
    if parse_reference(reference).kind != "open_clip":
        return None
    return lambda: load_text_tower(reference, weights=weights, trust_torchscript=trust_torchscript, seed=seed)
