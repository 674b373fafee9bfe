"""What a run says about itself: console lines, facts for the page, the model card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attar._version import __version__
from attar.config import DistillConfig, OptimConfig
from attar.data.references import shown
from attar.data.sources import Source, named_places
from attar.export import library_of, model_card
from attar.models import Backbone, Licence, Provenance, licence_named, terms_of
from attar.recipes.assembly import Assembly
from attar.reports import PROTOCOLS, Result, markdown_table, protocol_of, verdict
from attar.train import base_lr
from attar.utils.distributed import is_main, world_size
from attar.utils.io import append_line, read_lines, sha256_file
from attar.utils.progress import Log

_LOW_RATE = 1e-4  # below it short runs learn little
_SHOWN = 3  # damaged shards named in the log


def say_header(log: Log, built: Assembly) -> None:
    """Who teaches whom, on what, for how long."""
    config, epochs = built.config, built.total_steps / built.steps_per_epoch
    log.say(f"  method   {built.method.title}")
    log.say(f"  teacher  {describe(built.teacher)}  {'frozen' if _has_teacher(config) else 'teaches nothing here'}")
    if _has_teacher(config):
        say_licence(log, built.teacher.source)
    if built.teacher.source.weights == "random":
        log.say("           its weights are random: fine for a trial of the machinery, worthless as a teacher")
    log.say(f"  student  {describe(built.student)}")
    say_licence(log, *starting_weights(built.student))
    taken = named_places(config.data, built.source)
    data = taken[0] if len(taken) == 1 else f"{len(built.source):,} images of {len(taken)} places"
    log.say(
        f"  data     {data}    plan  {built.total_steps:,} steps x {config.batch_size:,}"
        f" views = {epochs:,.{1 if epochs >= 1 else 2}f} epochs on {_where(built)}"
        f", {told_rate(config.optim, config.batch_size)}"
    )
    if told := low_rate(config.optim, config.batch_size):
        log.say(f"           {told}")
    for place in taken if len(taken) > 1 else ():
        log.say(f"           {place}")
    if built.classes is not None:
        names = built.classes[1]
        log.say(f"  labels   {len(names)} classes: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}")
    if config.batch_size > len(built.source):
        log.say(
            f"           a batch of {config.batch_size} holds several views of each of the {len(built.source)} images"
        )
    if _has_teacher(config) and built.student.embed_dim > built.teacher.embed_dim:
        log.say(
            f"           the student is wider than its teacher ({built.student.embed_dim} and"
            f" {built.teacher.embed_dim} channels): it will cost more than it can learn"
        )


def say_licence(log: Log, *sources: Provenance) -> None:
    """What licence or gate of weights may keep a student from; nothing where there is no such thing."""
    terms = terms_of(*sources)
    if terms is not None and terms.is_told_at_start:
        log.say(f"           its licence is {terms.told}")


def places_in_words(references: Sequence[str], source: Source) -> dict[str, str]:
    """What each place holds, by name: a checkpoint that does not fit any more is told by these."""
    return {
        place.name: f"{place.images:,} images (fingerprint {place.fingerprint[:16]})"
        for place in named_places(references, source)
    }


def say_damage(log: Log, source: Source, bad_files: Path) -> None:
    """What of the data is passed over, as damaged shards: in the log, and once in `bad_files.jsonl`."""
    problems = source.problems
    for problem in problems[:_SHOWN]:
        log.say(f"           {problem.reason} About {problem.lost:,} are lost.")
    if len(problems) > _SHOWN:
        log.say(f"           and {len(problems) - _SHOWN:,} more (see {bad_files.name})")
    if problems and is_main():
        known = {line.get("reason") for line in read_lines(bad_files)}
        for problem in problems:
            if problem.reason not in known:
                append_line(bad_files, {"path": problem.name, "reason": problem.reason, "lost": problem.lost})


def _where(built: Assembly) -> str:
    ranks = world_size()
    return f"{ranks} x {built.device.type} ({built.config.parallel.engine})" if ranks > 1 else str(built.device)


def describe(backbone: Backbone, *, is_whole: bool = True) -> str:
    """A backbone in one line: name, size, tokens, provenance of its weights.

    Args:
        backbone: The model.
        is_whole: What of its file it has no use for is named; both towers of a file are of use together.
    """
    source = backbone.source
    words = [
        short(source.name),
        millions(backbone.num_parameters),
        f"{backbone.img_size} px, {backbone.grid[0]}x{backbone.grid[1]} tokens of {backbone.embed_dim}",
        source.weights,
    ]
    if source.sha256:
        words += [f"sha256 {source.sha256[:8]}", f"licence {source.licence}"]
    if source.explained and is_whole:
        reasons = Counter(reason for _, reason in source.explained)
        aside = (f"{reason.partition(';')[0]} ({count} keys)" for reason, count in reasons.items())
        words.append(f"left aside: {', '.join(aside)}")
    return "  ".join(word for word in words if word)


def millions(count: int) -> str:
    """A number of parameters, in thousands where it is small."""
    return f"{count / 1e6:.1f}M" if count >= 100_000 else f"{count / 1e3:.0f}k"


def short(reference: str) -> str:
    """A folder by its own name, a model in a run as `RUN/student`, anything else as it was given."""
    prefix = "hf:" if reference.startswith("hf:") else ""
    path = reference.removeprefix(prefix)
    is_folder = "/" in path and Path(path.partition("?")[0]).expanduser().is_dir()
    if not is_folder:
        return reference
    name, run = Path(path).name, Path(path).parent.name
    is_part = name.partition("?")[0] in ("student", "student-last", "teacher")
    return f"{prefix}{run}/{name}" if is_part and run else f"{prefix}{name}"


def origin_facts(teacher: Backbone | None) -> dict[str, str]:
    """Who taught, by which weights and under which licence: the first links of the chain of hashes."""
    if teacher is None:
        return {}
    source = teacher.source
    return {
        "teacher": describe(teacher),
        "teacher weights": f"{Path(source.file).name}, sha256 {source.sha256}" if source.file else source.weights,
        "teacher licence": source.licence or ("none (random weights)" if source.weights == "random" else "unknown"),
    }


def starting_weights(student: Backbone) -> list[Provenance]:
    """The source of a student's weights where anybody may have a say in it: neither chance nor the user's factory."""
    return [student.source] if student.source.licence is not None else []


def start_facts(student: Backbone) -> dict[str, str]:
    """By which weights a student starts and under which licence, which binds it as its teacher's does."""
    source = student.source
    file = f", {Path(source.file).name}, sha256 {source.sha256}" if source.file else ""
    return {
        "student started from": f"{source.weights}{file}",
        "starting licence": source.licence or f"none ({source.weights} weights)",
    }


def licence_noted(facts: Mapping[str, str]) -> Licence | None:
    """What binds a student by the facts of its run; None where all weights were nobody's, unknown of an older attar."""
    noted = [facts[name] for name in ("teacher licence", "starting licence") if name in facts] or ["unknown"]
    names = [name for name in noted if not name.startswith("none")]
    return licence_named(" and ".join(names)) if names else None


def say_results(log: Log, results: list[Result], best: Mapping[str, Any]) -> None:
    """The table at the end of a run."""
    if not results:
        return
    heading = f"{PROTOCOLS[protocol_of(results)]} top-1"
    log.say(f"\n  {'':10}{heading:>10}   95 % interval   images")
    for r in results:
        note = f"   ({which(best)})" if r.role == "student" else ""
        interval = f"{100 * r.ci95[0]:.1f} – {100 * r.ci95[1]:.1f}"
        log.say(f"  {r.role:10}{100 * r.value:>{max(10, len(heading))}.1f}   {interval:13}   {r.n:,}{note}")


def which(best: Mapping[str, Any]) -> str:
    """Which weights were kept."""
    name = "moving average" if best["role"] == "ema" else "student"
    return f"{name} at step {best['step']:,}"


def facts(
    built: Assembly, notes: Mapping[str, Any], best: Mapping[str, Any], *, student: Path | None = None
) -> dict[str, str]:
    """What page and model card say of where the student comes from; its hash too once its folder is written."""
    config = built.config
    untaught = {"teacher": f"{describe(built.teacher)}  (taught nothing)", "teacher licence": "none (taught nothing)"}
    changes = {"changed meanwhile": "; ".join(notes["changes"])} if "changes" in notes else {}
    classifier = {"teacher classifier": Path(config.teacher_classifier).name} if config.teacher_classifier else {}
    return {
        "method": built.method.title,
        **origin_facts(built.teacher),
        **({} if _has_teacher(config) else untaught),
        **classifier,
        "student": f"{config.student}, {millions(built.student.num_parameters)} parameters, {config.img_size} px",
        **start_facts(built.student),
        "weights kept": which(best),
        "data": "; ".join(map(str, named_places(config.data, built.source))),
        "images": f"{len(built.source):,}, fingerprint {built.source.fingerprint}",
        **changes,
        **({"teacher's answers": notes["teacher's answers"]} if "teacher's answers" in notes else {}),
        "monitor": _judged_on(built),
        "training": f"{steps_done(built.total_steps, best, student)} of {config.batch_size:,} views,"
        f" seed {config.seed}",
        "recipe": f"{config.recipe or 'none by name'}, {told_optimiser(config.optim, config.batch_size)}",
        **weights_hash(student, "model.safetensors"),
        "made with": f"attar {__version__}",
    }


def steps_done(total: int, best: Mapping[str, Any], student: Path | None) -> str:
    """How many steps made it: what is kept before the end of a run says so, whatever becomes of the run."""
    return (
        f"{total:,} steps" if student is not None or best["step"] >= total else f"{best['step']:,} of {total:,} steps"
    )


def figures(results: Sequence[Result]) -> str:
    """Markdown of what was measured, for a card: whether it helped, and the table."""
    table = markdown_table(results)
    return f"{verdict(results)}\n\n{table}" if results else table


def told_optimiser(optim: OptimConfig, batch_size: int) -> str:
    """How steps are made, in words."""
    return f"{optim.algorithm}, {told_rate(optim, batch_size)}, weight decay {optim.weight_decay:g}"


def told_rate(optim: OptimConfig, batch_size: int) -> str:
    """The learning rate at its highest, in words."""
    return f"learning rate {base_lr(optim, batch_size):.3g}"


def low_rate(optim: OptimConfig, batch_size: int, *, flag: str = "optim") -> str:
    """What to say where nobody gave the learning rate, and a small batch makes it low; else an empty string."""
    if optim.lr is not None or base_lr(optim, batch_size) >= _LOW_RATE:
        return ""
    return (
        f"the learning rate is low: {optim.lr_per_512:g} x {batch_size} / 512, made for large batches; a short run"
        f" learns little by it. Try --{flag}.lr 5e-4"
    )


def weights_hash(student: Path | None, name: str) -> dict[str, str]:
    """The last link of the chain of hashes: the student's own weights, where they are written."""
    return {} if student is None else {"student weights": f"{name}, sha256 {sha256_file(student / name)}"}


def limits(
    img_size: int,
    results: Sequence[Result],
    *,
    learned_from: str = "the images above",
    has_teacher: bool = True,
) -> list[str]:
    """What must not be read into a student's figures."""
    teachers = ", and from a teacher whose errors and biases it copies" if has_teacher else ""
    judged = {f"{r.metric} on {r.n:,} images" for r in results if r.role == "student"}
    return [
        f"It learned from {learned_from} alone{teachers}.",
        f"It was trained and judged at {img_size} px; other sizes were not measured.",
        f"Measured: {', '.join(sorted(judged))}. Nothing else was." if judged else "Nothing was measured.",
    ]


def _judged_on(built: Assembly) -> str:
    if built.config.monitor is None or built.monitor is None:
        return "none"
    sizes = built.monitor.protocol
    parts = f"{sizes['bank']:,} known images, {sizes['select']:,} to select by, {sizes['report']:,} to report on"
    return f"{shown(built.config.monitor)}: {parts}, centre crop {built.config.monitoring.crop_pct:g}"


def binding(built: Assembly) -> Licence | None:
    """The licence of the weights that a student is made from, its teacher's and its own at the start."""
    taught = [built.teacher.source] if _has_teacher(built.config) else []
    return terms_of(*taught, *starting_weights(built.student))


def _has_teacher(config: DistillConfig) -> bool:
    return config.method != "labels"


def card(
    built: Assembly,
    notes: Mapping[str, Any],
    best: Mapping[str, Any],
    results: list[Result],
    *,
    student: Path | None = None,
) -> str:
    """The model card; with the hash of the weights once the student's folder is written."""
    origin = short(built.config.teacher) if _has_teacher(built.config) else "labels"
    title = f"{short(built.config.student)} from {origin}"
    return model_card(
        title,
        facts(built, notes, best, student=student),
        figures(results),
        library=library_of(built.student),
        licence=binding(built),
        limits=limits(built.config.img_size, results, has_teacher=_has_teacher(built.config)),
    )
