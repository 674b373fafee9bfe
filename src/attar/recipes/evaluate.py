"""`attar evaluate`: any frozen backbone by the papers' protocols, and how far it is from the published figures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar.config import EvaluateConfig
from attar.data.loader import default_workers
from attar.data.sources import share_a_place
from attar.errors import ConfigError, DataError, MissingDatasetError, RunDirectoryError
from attar.evaluation.costs import told_disk, told_memory
from attar.evaluation.judged import Judged
from attar.evaluation.outputs import Output, fingerprint
from attar.evaluation.protocols import FeatureProtocol, Need, TaskData
from attar.evaluation.splits import images_hash
from attar.evaluation.store import OUTPUT_IMPLEMENTATION, Features, FeatureStore
from attar.evaluation.suite import DENSE, READS_TEXT, Task, means, parse_tasks, protocol_of
from attar.evaluation.task_data import is_benchmark, open_learned
from attar.models import Backbone
from attar.recipes.candidates import Candidate, candidates
from attar.recipes.describe import describe, short
from attar.reports import Result, caution, comparison_table, read_results, show, write_result
from attar.train.callbacks import most_bad
from attar.utils.distributed import (
    from_main,
    is_main,
    one_of_each_machine_first,
    peers_in_words,
    pick_device,
    process_group,
)
from attar.utils.io import cache_dir, read_json, remove_half_written, sha256_text, storage_errors, write_json
from attar.utils.progress import Log
from attar.utils.signals import polite_stop

_STALE_S = 3600.0  # no file of results takes so long to write
_REASONS = 3  # that are told in full for which tasks are skipped


@dataclass(frozen=True)
class EvaluateReport:
    """What an evaluation leaves behind.

    Attributes:
        out: The directory with `results/*.json`.
        results: All results that lie there, those of earlier commands too.
        skipped: Tasks whose data or text tower is missing, and what to do.
        table: Markdown of all results.
    """

    out: Path
    results: tuple[Result, ...]
    skipped: Mapping[str, str]
    table: str


@dataclass(frozen=True)
class Opened:
    """A task with its data."""

    task: Task
    data: TaskData
    protocol: FeatureProtocol[Any]


@dataclass(frozen=True)
class _Model(Judged):
    """The model under judgement, with what only the recipe looks at."""

    backbone: Backbone = field(kw_only=True)
    fingerprint: str = field(kw_only=True)


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Judge a model, or a run's student, teacher and random student, on each task; what is known is not done again.

    Features are kept in the cache, so that another protocol on the same images, or the same command after an
    interruption, does not ask the model again. On several ranks all embed, and the main one judges.

    Raises:
        UserError: If a model, a task or its data does not work out. A data set of a suite that is not there is skipped.
        Interrupted: If SIGINT or SIGTERM came; the same command goes on.
    """
    device = pick_device(config.device)
    with polite_stop(), process_group(device, timeout_s=config.timeout_s), peers_in_words():
        tasks, judged = parse_tasks(config.tasks), candidates(config)
        out = from_main(lambda: _directory(config))
        log = Log(out / "log.txt", is_silent=not is_main())
        with one_of_each_machine_first():
            opened, skipped = open_tasks(tasks, judged, config, log)
        if is_main():
            write_json(out / "skipped.json", skipped)
        if not opened:
            raise DataError(f"none of the {len(tasks)} tasks can be done: {next(iter(skipped.values()))}")
        for candidate in judged:
            _judge_all(candidate, opened, config, out, log)
        return from_main(lambda: _finish(out, tasks, skipped, log))


def _directory(config: EvaluateConfig) -> Path:
    """The directory for results; that of a run keeps its own, on which its verdict stands."""
    out = Path(config.out).expanduser().resolve()
    if (out / "run.json").is_file():
        raise RunDirectoryError(
            f"--out {out} is the directory of a run. Choose another for the results, such as {out}-judged."
        )
    if config.data_root is not None and not Path(config.data_root).expanduser().is_dir():
        raise DataError(f"data_root {config.data_root} is no folder. Give the one that the data sets lie in.")
    with storage_errors(out):
        (out / "results").mkdir(parents=True, exist_ok=True)
    for folder in (out, out / "results"):
        remove_half_written(folder, older_than_s=_STALE_S)  # several commands may fill one directory at once
    return out


def open_tasks(
    tasks: Sequence[Task], judged: Sequence[Candidate], config: EvaluateConfig, log: Log
) -> tuple[list[Opened], dict[str, str]]:
    """The tasks whose data is here and whose protocol suits a model, and why others are skipped.

    Raises:
        ConfigError: If a task that was asked for by its own name needs a text tower, and there is none.
    """
    open_learned.cache_clear()  # what lies there may be other images than in an earlier command
    opened: list[Opened] = []
    skipped: dict[str, str] = {}
    for task in tasks:
        try:
            _check_text(task, judged, is_named=str(task) in config.tasks)
            protocol = protocol_of(task, config)
            data = protocol.open(task.place)
        except (MissingDatasetError, _NoTextError) as error:
            skipped[str(task)] = str(error)
            continue
        opened.append(Opened(task, data, protocol))
        for warning in (w for part in data.parts.values() for w in getattr(part, "warnings", ())):
            log.say(f"  {task}: {warning}")
    _say_skipped(skipped, log)
    return opened, skipped


def _say_skipped(skipped: Mapping[str, str], log: Log) -> None:
    """Each reason once, with its tasks; of many reasons the first ones."""
    reasons: dict[str, list[str]] = {}
    for task, reason in skipped.items():
        reasons.setdefault(reason, []).append(task)
    for reason, tasks in list(reasons.items())[:_REASONS]:
        log.say(f"  skipped  {', '.join(tasks)}: {reason}")
    rest = [task for tasks in list(reasons.values())[_REASONS:] for task in tasks]
    if rest:
        log.say(f"  skipped  {', '.join(rest)}: likewise; skipped.json says where each is expected and how to get it")


class _NoTextError(ConfigError):
    """No model that is judged has a text tower: tasks of a suite are skipped."""


def _check_text(task: Task, judged: Sequence[Candidate], *, is_named: bool) -> None:
    if not READS_TEXT.get(task.protocol) or any(candidate.load_text for candidate in judged):
        return
    reason = f"{short(judged[0].name)} has no text tower that attar reads, to compare images with sentences."
    remedy = "Judge open_clip:NAME, a directory of open_clip, or hf:DIR of a clip or siglip"
    if is_named:
        raise ConfigError(f"{task}: {reason} {remedy}; or leave the task out.")
    raise _NoTextError(f"{reason} {remedy}.")


def _judge_all(candidate: Candidate, opened: Sequence[Opened], config: EvaluateConfig, out: Path, log: Log) -> None:
    """Every task of one model that is not known yet."""
    backbone = candidate.load(None).to(device := pick_device(config.device)).eval()
    model = _model(candidate, backbone, device)
    suited = [one for one in opened if model.has_text or not READS_TEXT.get(one.task.protocol)]
    wanted = [one for one in suited if not from_main(lambda o=one: _is_known(out, candidate, o, config, model))]  # type: ignore[misc]
    log.say(f"  {candidate.role:8} {describe(backbone)}{'' if wanted else '  measured before'}")
    if len(suited) < len(opened):
        log.say(f"  skipped  {len(opened) - len(suited)} tasks of the {candidate.role}, which has no text tower")
    workers = default_workers() if config.workers is None else config.workers
    store = FeatureStore(backbone, cache_dir() / "features", workers=workers)
    from_main(lambda: _tell_memory(wanted, backbone.embed_dim, log))
    needs = {one.task: one.protocol.needs(one.data, backbone.img_size) for one in wanted}
    embedded = _embed(store, needs, config, log)
    for one in wanted:
        features = {name: embedded.get(_key(need)) for name, need in needs[one.task].items()}
        lost = {name: _lost(features[name], need) for name, need in needs[one.task].items()}
        from_main(partial(_judge, out, candidate, one, features, config, model, log, lost=lost))


def _model(candidate: Candidate, backbone: Backbone, device: torch.device) -> _Model:
    """What protocols may ask of it; what they keep depends on its weights and on how it normalises."""
    weights = fingerprint(backbone)
    kept = sha256_text(json.dumps([weights, asdict(backbone.preprocess)]))[:32]
    name = f"{candidate.role} {short(candidate.name)}"
    folder = cache_dir() / "probes" / kept[:2] / kept
    return _Model(
        name, folder, device, candidate.load_text, load=candidate.load, backbone=backbone, fingerprint=weights
    )


def _embed(
    store: FeatureStore, needs: Mapping[Task, Mapping[str, Need]], config: EvaluateConfig, log: Log
) -> dict[Any, Features | None]:
    """One pass for all that look at the same images in the same view.

    Raises:
        DataError: If more images than the limit cannot be read.
    """
    passes = needed_views([need for own in needs.values() for need in own.values()])
    from_main(lambda: _tell_room(store, passes, log))
    found = {}
    for one, outputs in passes:
        key = _key(one)
        found[key] = store.features(one.images, one.view, outputs, statistics=one.statistics, name=one.name)
        _check_readable(found[key], one, config, log)
    return found


def needed_views(needs: Sequence[Need]) -> list[tuple[Need, list[Output]]]:
    """Of needs that look at the same images in the same view the first one, with the outputs of all."""
    groups: dict[Any, list[Need]] = {}
    for need in needs:
        groups.setdefault(_key(need), []).append(need)
    return [(group[0], sorted({output for need in group for output in need.outputs})) for group in groups.values()]


def _tell_memory(wanted: Sequence[Opened], width: int, log: Log) -> None:
    """How much memory logistic regressions take, before features are made for them.

    Raises:
        ConfigError: If it is more than there is.
    """
    for one in wanted:
        if one.task.protocol == "logistic" and (told := told_memory(str(one.task), one.data.parts, width)):
            log.say(f"           {told}")


def _tell_room(store: FeatureStore, passes: Sequence[tuple[Need, list[Output]]], log: Log) -> None:
    """How much room features take, before they are made.

    Raises:
        RunDirectoryError: If it is more than is free.
    """
    needed = sum(
        store.missing_bytes(one.images, one.view, outputs, statistics=one.statistics) for one, outputs in passes
    )
    if (told := told_disk(needed, store.folder)) is not None:
        log.say(f"           {told}")


def _lost(features: Features | None, need: Need) -> tuple[int, int]:
    """(images that could not be read, images); the main rank knows it."""
    return 0 if features is None else len(need.images) - len(features), len(need.images)


def _check_readable(features: Features | None, need: Need, config: EvaluateConfig, log: Log) -> None:
    """A figure on half of the images is another figure."""
    if features is None or len(features) == len(need.images):
        return
    bad = len(need.images) - len(features)
    first = min(set(range(len(need.images))) - set(features.positions.tolist()))
    words = f"{bad:,} of {len(need.images):,} {need.name} cannot be read, such as"
    words += f" {need.images.source.name(int(need.images.rows[first]))}"
    if bad > most_bad(len(need.images), config.max_bad_share):
        raise DataError(f"{words}: more than --max-bad-share {config.max_bad_share:g} allows. Mend them, or raise it.")
    log.say_once(f"           {words}")  # of each model, and where views differ, again


def _key(need: Need) -> Any:
    return images_hash(need.images), need.view, need.statistics


def _judge(
    out: Path,
    candidate: Candidate,
    one: Opened,
    features: Mapping[str, Features | None],
    config: EvaluateConfig,
    model: _Model,
    log: Log,
    *,
    lost: Mapping[str, tuple[int, int]],
) -> None:
    started = time.perf_counter()
    known = {name: found for name, found in features.items() if found is not None}
    score = one.protocol.judge(known, one.data, model)
    result = Result(
        task=str(one.task),
        role=candidate.role,
        model=short(candidate.name),
        metric=score.metric,
        value=score.value,
        ci95=score.ci95,
        n=score.n,
        protocol=score.protocol,
        mode=config.mode,
        seed=config.seed,
        seconds=round(time.perf_counter() - started, 1),
        source=asdict(model.backbone.source)
        | {"fingerprint": model.fingerprint, "judged": _judged(one, config, model), "unreadable": lost},
        held_out=_is_held_out(candidate, one),
        details=score.details,
    )
    write_result(out / "results", _file(one.task, candidate, config, model), result)
    log.say(f"           {one.task!s:32} {show(result)}, {result.n:,} images")


def _is_known(out: Path, candidate: Candidate, one: Opened, config: EvaluateConfig, model: _Model) -> bool:
    """Whether the same weights were judged the same way on the same images before, and on no fewer than are asked."""
    path = out / "results" / f"{_file(one.task, candidate, config, model)}.json"
    if not path.is_file():
        return False
    source = read_json(path)["source"]
    judged = _judged(one, config, model)
    is_same = source.get("fingerprint") == model.fingerprint and source.get("judged") == judged
    lost = source.get("unreadable", {})
    if not isinstance(lost, Mapping):  # the largest share, of an older attar
        return bool(is_same and lost <= config.max_bad_share)
    return is_same and all(bad <= most_bad(count, config.max_bad_share) for bad, count in lost.values())


def _judged(one: Opened, config: EvaluateConfig, model: _Model) -> dict[str, Any]:
    """What was judged how: with the model's fingerprint all that shapes a figure."""
    parts = one.data.parts
    images = {name: {"images": len(part), "fingerprint": images_hash(part)} for name, part in parts.items()}
    settings = config.model_dump(
        mode="json", include={one.task.protocol, "seed", *(["dense"] if one.task.protocol in DENSE else [])}
    )
    statistics = {name: list(values) for name, values in asdict(model.backbone.preprocess).items()}  # as JSON has them
    settings |= {"statistics": statistics, "implementation": OUTPUT_IMPLEMENTATION}
    text = {"text": model.text_fingerprint} if one.task.protocol in READS_TEXT else {}
    return {"split": one.data.origin, "data": images, "settings": settings} | text


def _is_held_out(candidate: Candidate, one: Opened) -> bool | None:
    """Whether what is reported lies apart from what a run's student learned from; None where nobody knows that."""
    if candidate.learned_from is None:
        return None
    parts = one.data.parts
    reported = [parts["test"]] if "test" in parts else list(parts.values())
    return not any(share_a_place(candidate.learned_from(), part.source) for part in reported) if reported else None


def _file(task: Task, candidate: Candidate, config: EvaluateConfig, model: _Model) -> str:
    """A name for the result's file: readable, and different for tasks and models that read alike."""
    readable = re.sub(r"[^\w.-]+", "-", str(task)).strip("-")[-60:]
    told_apart = sha256_text(f"{task} {model.fingerprint}")[:8]
    return f"{readable}-{candidate.role}-{config.mode}-{told_apart}"


def _chose_by_reported(task: Task, results: Sequence[Result]) -> bool:
    choices = (str(result.protocol.get("chosen_on")) for result in results if result.task == str(task))
    return any(choice == "test" or choice.endswith("images reported on") for choice in choices)


def _cautions(tasks: Sequence[Task], results: Sequence[Result]) -> dict[str, list[str]]:
    """What must be known of the images that tasks were measured on, and of which tasks."""
    found: dict[str, list[str]] = {}
    for task in map(str, tasks):
        if warning := caution([result for result in results if result.task == task]):
            found.setdefault(warning, []).append(task)
    return found


def _finish(out: Path, tasks: Sequence[Task], skipped: Mapping[str, str], log: Log) -> EvaluateReport:
    results = tuple(read_results(out / "results"))
    wanted = {str(task) for task in tasks}
    table = comparison_table([result for result in results if result.task in wanted], suites=means())
    log.say(f"\n{table}\n")
    flattered = [str(task) for task in tasks if not is_benchmark(task.place) and _chose_by_reported(task, results)]
    if flattered:
        log.say(
            f"  paper    {', '.join(flattered)}: chosen by the images reported on, as in the paper. That flatters the"
            " figure, the more the fewer images there are; --mode honest chooses by others."
        )
    for warning, names in _cautions(tasks, results).items():
        log.say(f"  caution  {', '.join(names)}: {warning} Give others.")
    if skipped:
        log.say(
            f"  skipped  {len(skipped)} of {len(tasks)} tasks, for which something is missing (skipped.json says what)"
        )
    log.say(f"  results  {out / 'results'}")
    return EvaluateReport(out, results, skipped, table)
