"""Verbs: whatever runs long is killed, started again, and leaves what it would have left."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.harness import (
    STUDENT,
    Trial,
    chance,
    distil_words,
    forked,
    half_under_a_whole_name,
    killed_after,
    left_behind,
    numbered,
)

_CLOCK = re.compile(r"time|second|latency|speed|per_s$|^cost of ")  # keys of what a clock wrote
_OF_THE_START = ("run_id", "command", "versions", "written", "teacher's answers")  # which tells how many were there
_NOT_COMPARED = ("log.txt", "report.html", "README.md")  # words with seconds in them; what they tell stands elsewhere
_DAY_S = 86400
_NO_LEFTOVERS = ("lock", ".lock", ".features-lock")  # files that locks are taken on, and stay


@dataclass(frozen=True)
class Verb:
    """A command that runs long.

    Attributes:
        words: Of the command, given where it writes and what it reads.
        make: Writes what it reads, once.
        needs: A package of an extra.
    """

    words: Callable[[Path, Path], list[str]]
    make: Callable[[Path], None] = lambda place: None
    needs: str = "attar"


def _distill(out: Path, _given: Path) -> list[str]:
    """With a cache of the teacher's answers, a monitor and a best student."""
    watched = ("--monitor", "playground:1?n=140", "--monitoring.every", "10", "--monitoring.k", "3")
    return distil_words(out, "--cached-views", "2", "--cache.format", "int8", *watched)


def _beforehand(out: Path, _given: Path) -> list[str]:
    """The teacher is asked about all views before the first step."""
    return distil_words(out, "--cached-views", "2", "--cache.format", "pca:8", "--cache.beforehand")


def _transfer(out: Path, _given: Path) -> list[str]:
    from attar.recipes.quickstart import playground_teacher

    return [
        *("transfer", "--teacher", str(playground_teacher()), "--student", STUDENT, "--labelled", "playground:3?n=140"),
        *("--val", "playground:5?n=28", "--test", "playground:4?n=42", "--pool", "playground:0?n=64"),
        *("--labels-per-class", "2", "--img-size", "32", "--teacher-img-size", "64", "--workers", "0"),
        *("--precision", "fp32", "--device", "cpu", "--log-every", "1", "--checkpoint.every", "3", "--out", str(out)),
        *("--adapt.mode", "head_then_full", "--adapt.max-steps", "6", "--adapt.batch-size", "4", "--adapt.every", "2"),
        *("--transfer.max-steps", "16", "--transfer.batch-size", "8", "--transfer.cached-views", "2"),
        *("--finetune.max-steps", "10", "--finetune.batch-size", "8", "--finetune.every", "4"),
    ]


def _write_pairs(place: Path) -> None:
    """A small CLIP of random weights, images, captions, sentences and labelled images."""
    import open_clip
    from PIL import Image

    from attar.data.arrangements import COMBINATIONS, render_arrangement
    from attar.data.playground_sentences import draw_sentence
    from attar.export import write_two_towers
    from attar.models import load_two_towers

    tower = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (place / "models").mkdir()
    described = {"embed_dim": 16, "vision_cfg": tower, "text_cfg": text}
    (place / "models" / "attar-faults.json").write_text(json.dumps(described))
    open_clip.add_model_config(place / "models")
    towers = load_two_towers("open_clip:attar-faults", weights="random")
    write_two_towers(place / "teacher", towers.image, towers.text, card="random weights", scale=100.0)
    (place / "images").mkdir()
    for index in range(48):
        Image.fromarray(render_arrangement(0, index, size=32).image).save(place / f"images/{index:02}.png")
    (place / "text.txt").write_text("\n".join(draw_sentence(0, index).text for index in range(80)))
    for index in range(30):
        scene = render_arrangement(1, index, size=32)
        folder = place / "test" / "_".join(COMBINATIONS["seen"][scene.label % 3])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / f"{index}.png")


def _distill_vl(out: Path, given: Path) -> list[str]:
    return [
        *("distill-vl", "--teacher", f"open_clip:{given / 'teacher'}", "--student", STUDENT),
        *("--images", str(given / "images"), "--sentences", str(given / "text.txt"), "--monitor", str(given / "test")),
        *("--img-size", "32", "--batch-size", "8", "--text-batch-size", "12", "--max-steps", "20", "--workers", "0"),
        *("--teacher-views", "matched", "--cached-views", "2", "--precision", "fp32", "--device", "cpu"),
        *("--log-every", "1", "--checkpoint.every", "3", "--monitoring.every", "8", "--out", str(out)),
    ]


def _embed(out: Path, _given: Path) -> list[str]:
    return [
        *("embed", "--model", STUDENT, "--weights", "random", "--img-size", "32", "--data", "playground:0?n=1500"),
        *("--out", str(out), "--workers", "0", "--precision", "fp32", "--device", "cpu"),
        *("--batch-size", "50", "--shard-size", "100"),
    ]


def _evaluate(out: Path, _given: Path) -> list[str]:
    """Features, probes and half-trained heads lie in the cache, which is each trial's own."""
    place = "playground:1?n=160&variety=0"
    tasks = f"knn:{place},linear:{place},logistic:{place},segmentation:playground:1?n=20&variety=0"
    return [
        *("evaluate", STUDENT, "--weights", "random", "--img-size", "32", "--tasks", tasks, "--out", str(out)),
        *(
            "--workers",
            "0",
            "--device",
            "cpu",
            "--knn.k",
            "3",
            "5",
            "--linear.epochs",
            "2",
            "--linear.batch-size",
            "32",
        ),
        *("--dense.save-every", "20"),
    ]


VERBS: dict[str, Verb] = {
    "embed": Verb(_embed),
    "cached views": Verb(_distill),
    "asked beforehand": Verb(_beforehand),
    "transfer": Verb(_transfer),
    "evaluate": Verb(_evaluate),
    "distill-vl": Verb(_distill_vl, _write_pairs, "open_clip"),
}


def killed_verbs(folder: Path, *, trials: int, seed: int, only: int | None) -> Iterator[Trial]:
    """Each verb in turn (embed, distill with answers kept and asked beforehand, transfer, evaluate, distill-vl): it is
    killed one to three times, at times drawn over its whole length, then let to its end, where every file must hold
    what it holds after an undisturbed one, and no other may be there (extends check a)."""
    names = [name for name, verb in VERBS.items() if importlib.util.find_spec(verb.needs)]
    golden: dict[str, tuple[dict[str, str], float]] = {}
    for number in numbered(trials, only):
        name = names[number % len(names)]
        place = folder / name.replace(" ", "-")
        if name not in golden:
            golden[name] = _golden(VERBS[name], place)
        rng, began = chance(seed, number), time.monotonic()
        times = [rng.uniform(0.0, 1.1 * golden[name][1]) for _ in range(rng.randint(1, 3))]
        problem = _killed(VERBS[name], place, f"run-{number}", times) or changes(
            content(place / f"run-{number}" / "out"), golden[name][0]
        )
        fault = f"{name} killed after " + ", ".join(f"{after:.3f} s" for after in times)
        yield Trial(number, fault, "wrong" if problem else "recovered", problem, time.monotonic() - began)
        if not problem:
            shutil.rmtree(place / f"run-{number}")


def _golden(verb: Verb, place: Path) -> tuple[dict[str, str], float]:
    """(what an undisturbed command leaves, how long it takes)."""
    (place / "given").mkdir(parents=True)
    verb.make(place / "given")
    began = time.monotonic()
    problem = _killed(verb, place, "golden", [])
    assert not problem, problem
    return content(place / "golden" / "out"), time.monotonic() - began


def _killed(verb: Verb, place: Path, name: str, times: list[float]) -> str:
    """Run a verb to its end, killed at these times; what went otherwise than it should."""
    trial = place / name
    trial.mkdir()
    out, log = trial / "out", trial / "said.log"
    words = verb.words(out, place / "given")

    def own_cache() -> None:
        os.environ["ATTAR_CACHE"] = str(trial / "cache")

    for after in times:
        ended = forked(words, before=own_cache, while_running=killed_after(after), log=log)
        if ended.code not in (0, -9):
            return f"exit code {ended.code} before it was killed: {ended.said[-400:]}"
        if problem := half_under_a_whole_name(out):
            return problem
    for left in out.rglob(".*"):  # the next start is tomorrow's
        os.utime(left, (time.time() - _DAY_S,) * 2)
    ended = forked(words, before=own_cache, log=log)
    if ended.code:
        return f"exit code {ended.code}: {ended.said[-400:]}"
    return ", ".join(name for name in left_behind(out) if Path(name).name not in _NO_LEFTOVERS)


# --- the judge ------------------------------------------------------------------------------------------------------


def content(out: Path) -> dict[str, str]:
    """Of every file that a command left the hash of what it holds, without anything that a clock or a path wrote."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if not path.is_file() or path.name.startswith(".") or path.name in (*_NOT_COMPARED, *_NO_LEFTOVERS):
            continue
        found[name] = hashlib.sha256(_without_clock(path, out)).hexdigest()
    return found


def _without_clock(path: Path, out: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix not in (".json", ".jsonl", ".yaml"):
        return data
    text = data.decode().replace(str(out), "OUT")
    if path.suffix == ".yaml":
        return text.encode()
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    is_of_checkpoint = path.name == "manifest.json" and path.parent.name.startswith("step-")
    return json.dumps([_plain(value) for value in values if not is_of_checkpoint], sort_keys=True).encode()


def _plain(value: Any) -> Any:
    """JSON without clocks and names of this very run."""
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if not _CLOCK.search(key)}
        return {key: item for key, item in kept.items() if key not in _OF_THE_START}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def changes(found: dict[str, str], golden: dict[str, str]) -> str:
    """In what the files of a command differ from the undisturbed one's; nothing where they do not."""
    said = {
        "missing": golden.keys() - found.keys(),
        "more": found.keys() - golden.keys(),
        "other": {name for name in golden.keys() & found.keys() if golden[name] != found[name]},
    }
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in said.items() if names)
