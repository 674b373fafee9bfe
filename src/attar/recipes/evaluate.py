"""`attar evaluate`: any frozen backbone by the papers' protocols, and how far it is from the published figures."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attar.config import EvaluateConfig
from attar.data.loader import default_workers
from attar.errors import MissingDatasetError
from attar.evaluation.outputs import fingerprint
from attar.evaluation.protocols import FeatureProtocol, Need
from attar.evaluation.splits import Splits
from attar.evaluation.store import Features, FeatureStore
from attar.evaluation.suite import Task, means, open_task, parse_tasks, protocol_of
from attar.models import Backbone
from attar.recipes.candidates import Candidate, candidates
from attar.recipes.describe import describe, short
from attar.reports import Result, comparison_table, read_results, show, write_result
from attar.utils.distributed import from_main, is_main, peers_in_words, pick_device, process_group
from attar.utils.io import cache_dir, read_json, sha256_text, storage_errors, write_json
from attar.utils.progress import Log
from attar.utils.signals import polite_stop


@dataclass(frozen=True)
class EvaluateReport:
    """What an evaluation leaves behind.

    Attributes:
        out: The directory with `results/*.json`.
        results: All results that lie there, those of earlier commands too.
        skipped: Tasks whose data is missing, and how to get it.
        table: Markdown of all results.
    """

    out: Path
    results: tuple[Result, ...]
    skipped: Mapping[str, str]
    table: str


@dataclass(frozen=True)
class _Opened:
    """A task with its data."""

    task: Task
    splits: Splits
    protocol: FeatureProtocol


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
        out = Path(config.out).expanduser().resolve()
        with storage_errors(out):
            (out / "results").mkdir(parents=True, exist_ok=True)
        log = Log(out / "log.txt", is_silent=not is_main())
        tasks = parse_tasks(config.tasks)
        opened, skipped = _open(tasks, config, log)
        if is_main():
            write_json(out / "skipped.json", skipped)
        for candidate in candidates(config) if opened else ():
            _judge_all(candidate, opened, config, out, log)
        return from_main(lambda: _finish(out, tasks, skipped, log))


def _open(tasks: Sequence[Task], config: EvaluateConfig, log: Log) -> tuple[list[_Opened], dict[str, str]]:
    """The tasks whose data is here, and why others are skipped."""
    opened: list[_Opened] = []
    skipped: dict[str, str] = {}
    known: dict[str, Splits] = {}
    for task in tasks:
        try:
            if task.place not in known:
                known[task.place] = open_task(task, config)
        except MissingDatasetError as error:
            skipped[str(task)] = str(error)
            log.say(f"  skipped  {task}: {error}")
            continue
        opened.append(_Opened(task, known[task.place], protocol_of(task, config)))
    return opened, skipped


def _judge_all(candidate: Candidate, opened: Sequence[_Opened], config: EvaluateConfig, out: Path, log: Log) -> None:
    """Every task of one model that is not known yet."""
    backbone = candidate.load().to(pick_device(config.device)).eval()
    model = fingerprint(backbone)
    wanted = [one for one in opened if not from_main(lambda o=one: _is_known(out, candidate, o, config, model))]  # type: ignore[misc]
    log.say(f"  {candidate.role:8} {describe(backbone)}{'' if wanted else '  measured before'}")
    workers = default_workers() if config.workers is None else config.workers
    store = FeatureStore(backbone, cache_dir() / "features", workers=workers)
    needs = {one.task: one.protocol.needs(one.splits, backbone.img_size) for one in wanted}
    embedded = _embed(store, needs)
    for one in wanted:
        features = {name: embedded.get(_key(need)) for name, need in needs[one.task].items()}
        from_main(lambda o=one, f=features: _judge(out, candidate, o, f, config, backbone, model, log))  # type: ignore[misc]


def _embed(store: FeatureStore, needs: Mapping[Task, Mapping[str, Need]]) -> dict[Any, Features | None]:
    """One pass for all that look at the same images in the same view."""
    groups: dict[Any, list[Need]] = {}
    for need in (need for own in needs.values() for need in own.values()):
        groups.setdefault(_key(need), []).append(need)
    found = {}
    for key, group in groups.items():
        outputs = sorted({output for need in group for output in need.outputs})
        one = group[0]
        found[key] = store.features(one.images, one.view, outputs, statistics=one.statistics, name=one.name)
    return found


def _key(need: Need) -> Any:
    return id(need.images), need.view, need.statistics


def _judge(
    out: Path,
    candidate: Candidate,
    one: _Opened,
    features: Mapping[str, Features | None],
    config: EvaluateConfig,
    backbone: Backbone,
    model: str,
    log: Log,
) -> None:
    started = time.perf_counter()
    score = one.protocol.judge({name: found for name, found in features.items() if found is not None}, one.splits)
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
        source=asdict(backbone.source) | {"fingerprint": model, "judged": _judged(one, config)},
        details=score.details,
    )
    write_result(out / "results", _file(one.task, candidate, config), result)
    log.say(f"           {one.task!s:32} {show(result)}")


def _is_known(out: Path, candidate: Candidate, one: _Opened, config: EvaluateConfig, model: str) -> bool:
    """Whether the same weights were judged the same way on the same images before."""
    path = out / "results" / f"{_file(one.task, candidate, config)}.json"
    if not path.is_file():
        return False
    source = read_json(path)["source"]
    return bool(source.get("fingerprint") == model and source.get("judged") == _judged(one, config))


def _judged(one: _Opened, config: EvaluateConfig) -> dict[str, Any]:
    """What was judged how: with the model's fingerprint all that shapes a figure."""
    splits = one.splits
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    images = {name: {"images": len(part), "fingerprint": part.source.fingerprint} for name, part in parts.items()}
    settings = config.model_dump(mode="json", include={one.task.protocol, "img_size", "seed"})
    return {"split": splits.origin, "data": images, "settings": settings}


def _file(task: Task, candidate: Candidate, config: EvaluateConfig) -> str:
    """A name for the result's file: readable, and different for tasks that read alike."""
    readable = re.sub(r"[^\w.-]+", "-", str(task)).strip("-")[-60:]
    return f"{readable}-{sha256_text(str(task))[:6]}-{candidate.role}-{config.mode}"


def _finish(out: Path, tasks: Sequence[Task], skipped: Mapping[str, str], log: Log) -> EvaluateReport:
    results = tuple(read_results(out / "results"))
    wanted = {str(task) for task in tasks}
    table = comparison_table([result for result in results if result.task in wanted], suites=means())
    log.say(f"\n{table}\n")
    if skipped:
        log.say(
            f"  skipped  {len(skipped)} of {len(tasks)} tasks, whose data is missing (skipped.json says how to get it)"
        )
    log.say(f"  results  {out / 'results'}")
    return EvaluateReport(out, results, skipped, table)
