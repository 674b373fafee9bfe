"""What a run of two towers says about itself: console lines, facts for the page, the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attar._version import __version__
from attar.config import DimeFmConfig
from attar.data.references import shown
from attar.data.sources import named_places
from attar.export import two_towers_card
from attar.methods import DimeFm
from attar.models import Licence, TextTower, terms_of
from attar.recipes.describe import (
    describe,
    figures,
    limits,
    millions,
    origin_facts,
    say_licence,
    short,
    start_facts,
    starting_weights,
    steps_done,
    told_optimiser,
    weights_hash,
    which,
)
from attar.recipes.vl_assembly import VlAssembly
from attar.reports import Result
from attar.utils.distributed import world_size
from attar.utils.progress import Log

_NEAR = 1.5  # how far apart two scales may be and be called one
_TEXT = {"frozen_teacher": "the teacher's, as it is", "small_student": "a small one, which learns"}


def say_towers(log: Log, built: VlAssembly) -> None:
    """Who teaches whom, on what, for how long."""
    config, teacher = built.config, built.teacher
    log.say(f"  method   {DimeFm.title}")
    log.say(f"  teacher  {describe(teacher.image, is_whole=False)}  frozen")
    log.say(f"           text {describe_text(teacher.text)}")
    say_licence(log, teacher.image.source)
    if teacher.image.source.weights == "random":
        log.say("           its weights are random: fine for a trial of the machinery, worthless as a teacher")
    log.say(f"  student  {describe(built.student)}")
    say_licence(log, *starting_weights(built.student))
    log.say(f"           text {describe_text(built.text)}: {_TEXT[config.dime_fm.text_mode]}")
    if larger := _larger(built):
        log.say(f"           {larger}. Try a smaller --text.depth or --text.width")
    own = teacher.text.logit_scale
    if own is not None and not own / _NEAR <= config.dime_fm.scale <= own * _NEAR:
        log.say(
            f"           the teacher multiplies cosines by {own:.3g}, this run by {config.dime_fm.scale:g}: its scores"
            f" are another teacher's then. Try --dime-fm.scale {own:.3g}"
        )
    epochs = built.total_steps / built.steps_per_epoch
    ranks = world_size()
    log.say(f"  images   {_images(built)}, {config.teacher_views} views")
    if (size := config.batch_size) > (count := len(built.source)):
        log.say(f"           a batch of {size:,} holds several views of each of the {count:,} images")
    log.say(
        f"  plan     {built.total_steps:,} steps x {config.batch_size:,} images and"
        f" {config.text_batch_size or config.batch_size:,} sentences = {epochs:,.{1 if epochs >= 1 else 2}f} epochs on"
        f" {f'{ranks} x {built.device.type}' if ranks > 1 else built.device}"
    )


def describe_text(tower: TextTower) -> str:
    """A text tower in one line."""
    size, tokens = millions(_parameters(tower)), tower.context_length
    return f"{size}, {tokens} tokens to {tower.embed_dim} numbers, {tower.source.weights}"


def _larger(built: VlAssembly) -> str:
    """What a reader must know of a text tower that is small by name alone; nothing of any other."""
    own, teacher = _parameters(built.text), _parameters(built.teacher.text)
    if not built.learns_text or own <= teacher:
        return ""
    return f"the small text tower is larger than the teacher's ({millions(own)} and {millions(teacher)} parameters)"


def _parameters(tower: TextTower) -> int:
    return sum(p.numel() for p in tower.parameters())


def towers_facts(
    built: VlAssembly, notes: Mapping[str, Any], best: Mapping[str, Any], *, student: Path | None = None
) -> dict[str, str]:
    """What page and model card say of where the student comes from; its hash too once its folder is written."""
    config = built.config
    text = f"{describe_text(built.text)}: {_TEXT[config.dime_fm.text_mode]}"
    changes = {"changed meanwhile": "; ".join(notes["changes"])} if "changes" in notes else {}
    return {
        "method": DimeFm.title,
        "terms": _terms(config.dime_fm),
        **(origin_facts(built.teacher.image) | {"teacher": describe(built.teacher.image, is_whole=False)}),
        "student": f"{config.student}, {millions(built.student.num_parameters)} parameters, {config.img_size} px",
        "text tower": "; ".join(filter(None, (text, _larger(built)))),
        **start_facts(built.student),
        "weights kept": which(best),
        "images": _images(built),
        "sentences": "; ".join(map(shown, config.sentences)),
        **({"captions": shown(config.captions)} if config.captions else {}),
        "teacher saw": "each image once, whole" if config.teacher_views == "fixed" else "the student's views",
        **changes,
        "monitor": _judged_on(built),
        "training": f"{steps_done(built.total_steps, best, student)} of {config.batch_size:,} images,"
        f" seed {config.seed}",
        "recipe": f"{config.recipe or 'none by name'}, {told_optimiser(config.optim, config.batch_size)}",
        **weights_hash(student, "open_clip_model.safetensors"),
        "made with": f"attar {__version__}",
    }


def towers_card(
    built: VlAssembly,
    notes: Mapping[str, Any],
    best: Mapping[str, Any],
    results: Sequence[Result] = (),
    costs: str = "",
    *,
    student: Path | None = None,
) -> str:
    """The model card; with the hash of the weights once the student's folder is written."""
    title = f"{short(built.config.student)} from {short(built.config.teacher)}"
    return two_towers_card(
        title,
        towers_facts(built, notes, best, student=student),
        figures(results),
        costs,
        licence=towers_binding(built),
        limits=limits(built.config.img_size, results, learned_from="the images and sentences above"),
    )


def towers_binding(built: VlAssembly) -> Licence | None:
    """The licence of the weights that both towers are made from; a text tower's are the teacher's, or random."""
    return terms_of(built.teacher.image.source, *starting_weights(built.student))


def _terms(objectives: DimeFmConfig) -> str:
    """What was learned by, with weights."""
    weights = {name: getattr(objectives, f"{name}_weight") for name in ("vl", "pvl", "udist", "feature", "contrastive")}
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight)


def _images(built: VlAssembly) -> str:
    return "; ".join(map(str, named_places(built.config.images, built.source)))


def _judged_on(built: VlAssembly) -> str:
    if built.config.monitor is None or built.monitor is None:
        return "none"
    sizes = built.monitor.protocol
    return f"{shown(built.config.monitor)}: {sizes['select']:,} to select by, {sizes['report']:,} to report on"
