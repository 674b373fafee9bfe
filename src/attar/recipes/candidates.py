"""Whom `attar evaluate` judges: of a run its student, its teacher and a random student, else the model named."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attar.config import DistillConfig, DistillVlConfig, EvaluateConfig
from attar.config.files import read_settings
from attar.data.sources import Source, open_source
from attar.errors import ConfigError
from attar.models import Backbone, Preprocess, TextTower, load_backbone, load_text_tower, load_two_towers
from attar.models.open_clip_files import folder_in
from attar.models.references import OPEN_CLIP_CONFIG, parse_reference
from attar.models.two_towers import has_text_tower
from attar.recipes.assembly import load_student, load_teacher
from attar.recipes.vl_assembly import start_image_tower
from attar.reports import Role
from attar.utils.io import read_json

_IMG_SIZE = 224


@dataclass(frozen=True)
class Candidate:
    """A model to be judged.

    Attributes:
        role: Whose figures these are.
        name: Model reference, for people.
        load: Makes the backbone, on the CPU, at an input size in pixels or at its own.
        load_text: Makes its text tower, on the CPU; None where it has none.
        learned_from: Opens the images that the student learned from; None where attar does not know.
    """

    role: Role
    name: str
    load: Callable[[int | None], Backbone]
    load_text: Callable[[], TextTower] | None = None
    learned_from: Callable[[], Source] | None = None


def candidates(config: EvaluateConfig) -> list[Candidate]:
    """The models to judge, in the order of the table.

    Raises:
        ConfigError: If a role is asked for that the model does not have, or settings of a run are given anew.
    """
    run = Path(config.model).expanduser()
    found = _of_named_run(config, run) if (run / "run.json").is_file() else _of_model(config)
    roles = config.roles or [candidate.role for candidate in found if candidate.role != "random" or len(found) > 2]
    known = {candidate.role: candidate for candidate in found}
    unknown = next((role for role in roles if role not in known), None)
    if unknown is not None:
        raise ConfigError(f"role {unknown}: {config.model} has {', '.join(known)}. Teachers belong to runs.")
    return [known[role] for role in dict.fromkeys(roles)]


def _of_model(config: EvaluateConfig) -> list[Candidate]:
    reference = parse_reference(config.model)
    is_published = reference.kind == "open_clip" and "pretrained" in reference.arguments
    untrained = f"open_clip:{reference.name}" if is_published else config.model  # whose tag names the weights
    is_folder = reference.kind == "directory" or (reference.kind == "open_clip" and folder_in(reference) is not None)
    is_folder |= reference.kind == "hf" and os.path.isdir(os.path.expanduser(reference.name))
    own_size = None if is_folder else _IMG_SIZE

    def load(name: str, weights: str, img_size: int | None) -> Backbone:
        return load_backbone(
            name,
            weights=weights,
            img_size=img_size or config.img_size or own_size,
            pos_embed=config.pos_embed,
            trust_torchscript=config.trust_torchscript,
            seed=config.seed,
        )

    def model(img_size: int | None) -> Backbone:
        return load(config.model, config.weights, img_size)

    def random(img_size: int | None) -> Backbone:
        backbone = load(untrained, "random", img_size)
        backbone.normalise_with(model(img_size).preprocess)  # random weights have no statistics of their own
        return backbone

    trust, seed = config.trust_torchscript, config.seed
    return [
        Candidate(
            "model", config.model, model, _text(config.model, config.weights, trust_torchscript=trust, seed=seed)
        ),
        Candidate("random", untrained, random, _text(untrained, "random", trust_torchscript=trust, seed=seed)),
    ]


def _of_named_run(config: EvaluateConfig, run: Path) -> list[Candidate]:
    if config.weights != "pretrained":
        raise ConfigError(f"weights is {config.weights}, and {run} is a run with a student of its own. Leave it out.")
    return candidates_of_run(run, img_size=config.img_size)


def candidates_of_run(run: Path, *, img_size: int | None = None) -> list[Candidate]:
    """Student, teacher and random student of a run of `attar distill` or `attar distill-vl`.

    Args:
        run: Its directory.
        img_size: Input in pixels where a protocol asks for none; by default as the run had it.

    Raises:
        ConfigError: If the run has no student yet.
    """
    asked = img_size
    settings = read_settings(run / "config.yaml")
    has_two_towers = "sentences" in settings
    if not (run / "student" / (OPEN_CLIP_CONFIG if has_two_towers else "config.json")).is_file():
        raise ConfigError(f"run {run} has no student yet. Let it end (the same command goes on), or name a model.")
    if has_two_towers:
        return _of_vl_run(run, asked, DistillVlConfig.build(settings))
    trained = DistillConfig.build(settings)

    def at(img_size: int | None) -> DistillConfig:
        size = img_size or asked
        return trained if size is None else trained.replace(img_size=size, teacher_img_size=size)

    def student(img_size: int | None) -> Backbone:
        described = read_json(run / "student" / "config.json").get("attar")
        if described is None:
            return load_backbone(str(run / "student"), img_size=at(img_size).img_size)
        statistics = Preprocess(tuple(described["mean"]), tuple(described["std"]))  # a module of the user's own
        return load_student(at(img_size), str(run / "student" / "model.safetensors"), preprocess=statistics)

    def random(img_size: int | None) -> Backbone:
        return load_student(at(img_size), "random", preprocess=student(img_size).preprocess)

    weights, trust, seed = trained.teacher_weights, trained.trust_torchscript, trained.seed
    text = _text(trained.teacher, weights, trust_torchscript=trust, seed=seed)
    learned_from = cache(lambda: open_source(trained.data))
    return [
        Candidate("student", trained.student, student, learned_from=learned_from),
        Candidate("teacher", trained.teacher, lambda size: load_teacher(at(size)), text, learned_from),
        Candidate("random", trained.student, random, learned_from=learned_from),
    ]


def _of_vl_run(run: Path, asked: int | None, trained: DistillVlConfig) -> list[Candidate]:
    """Of a run of two towers; a random image tower stands beside the teacher's text tower, as in the run itself."""
    shipped = str(run / "student")

    def student(img_size: int | None) -> Backbone:
        return load_backbone(shipped, img_size=img_size or asked)

    def teacher(img_size: int | None) -> Backbone:
        return load_backbone(
            trained.teacher,
            weights=trained.teacher_weights,
            img_size=img_size or asked,
            trust_torchscript=trained.trust_torchscript,
            seed=trained.seed,
        )

    def random(img_size: int | None) -> Backbone:
        size = img_size or asked or trained.img_size
        return start_image_tower(trained.replace(img_size=size), "random", load_two_towers(shipped))

    own = _text(shipped, "pretrained", trust_torchscript=False, seed=trained.seed)
    weights, trust, seed = trained.teacher_weights, trained.trust_torchscript, trained.seed
    text = _text(trained.teacher, weights, trust_torchscript=trust, seed=seed)
    learned_from = cache(lambda: open_source(trained.images))
    return [
        Candidate("student", trained.student, student, own, learned_from),
        Candidate("teacher", trained.teacher, teacher, text, learned_from),
        Candidate("random", trained.student, random, text, learned_from),
    ]


def _text(reference: str, weights: str, *, trust_torchscript: bool, seed: int) -> Callable[[], TextTower] | None:
    """What loads the text tower of a reference, None for models without one that attar reads."""
    if not has_text_tower(reference):
        return None
    return lambda: load_text_tower(reference, weights=weights, trust_torchscript=trust_torchscript, seed=seed)
