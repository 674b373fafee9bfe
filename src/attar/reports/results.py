"""Result files: one JSON object per measurement, and the table and sentence people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from attar.errors import DamagedFileError
from attar.utils.io import read_json, write_json
from attar.utils.plain import in_cell

Role = Literal["student", "teacher", "random", "model"]
"""Whose figure it is: of a run its student, its teacher and a student that learned nothing, else the model named."""

Mode = Literal["honest", "paper"]
"""Whether what is reported was selected on other images, or on the same as in the paper."""

PROTOCOLS = {"knn": "k-NN", "zero_shot": "zero-shot"}
"""How a run's monitor measures, by the first word of a result's task, and what people call it."""

_WORTH = 0.1  # of the way from a random student to the teacher: less than that is no help


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Attributes:
        task: What was measured on what, such as `knn:DIR`.
        role: Whose figure it is.
        model: Model reference.
        metric: Name of the figure, such as `top1`.
        value: In [0, 1], but for depth (metres) and corruption error.
        ci95: Its 95 % interval.
        n: Images it was measured on.
        protocol: Settings that shape the figure.
        mode: `honest` (selected and reported on different images) or `paper`.
        seed: Of the run.
        seconds: Time the measurement took.
        source: File and sha256 of the weights.
        selection: The same figure on the half that the best student is chosen by; what curves are compared with.
        details: More of the same measurement: figures by class, by k, by penalty.
        held_out: Whether the images lie apart from those trained on; None where nobody knows.
    """

    task: str
    role: Role
    model: str
    metric: str
    value: float
    ci95: tuple[float, float]
    n: int
    protocol: dict[str, Any] = field(default_factory=dict)
    mode: Mode = "honest"
    seed: int = 0
    seconds: float = 0.0
    source: dict[str, Any] = field(default_factory=dict)
    selection: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    held_out: bool | None = True


def write_result(folder: Path, name: str, result: Result) -> None:
    """Write `results/NAME.json`."""
    write_json(folder / f"{name}.json", asdict(result))


def read_results(folder: Path) -> list[Result]:
    """All results of a run, student first.

    Raises:
        DamagedFileError: If a file in the folder is no result.
    """
    order = {"student": 0, "model": 1, "teacher": 2, "random": 3}
    found = map(_read_result, folder.glob("*.json"))
    return sorted(found, key=lambda result: (result.task, order.get(result.role, 9)))


def _read_result(path: Path) -> Result:
    try:
        fields = read_json(path)
        result = Result(**fields | {"ci95": tuple(map(float, fields["ci95"]))})
        is_sound = isinstance(result.value, float | int) and isinstance(result.task, str) and len(result.ci95) == 2
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, DamagedFileError):
            raise
        is_sound = False
    if not is_sound:
        raise DamagedFileError(f"{path} is damaged: it is no result of attar. Remove it, and measure again.")
    return result


def protocol_of(results: Sequence[Result]) -> str:
    """Which of `PROTOCOLS` the monitor of a run measured by."""
    kinds = {result.task.partition(":")[0] for result in results}
    return next((kind for kind in PROTOCOLS if kind in kinds), "knn")


def verdict(results: Sequence[Result]) -> str:
    """Did it help? One sentence, from the figures of student, teacher and random student on the monitor's images.

    It helped where the intervals of student and random student lie apart. It did not where even the far ends of both
    leave a gain of less than a tenth of what there was to gain: only many images make intervals so narrow, so that few
    of them prove neither. Both are measured on the same images, which makes the intervals wider than need be.
    """
    kind = protocol_of(results)
    by_role = {result.role: result for result in results if result.task.startswith(f"{kind}:")}
    if not {"student", "teacher", "random"} <= set(by_role):
        return "Nothing was measured: give labelled held-out images with --monitor to know whether it helped."
    student, teacher, random = by_role["student"], by_role["teacher"], by_role["random"]
    rest = (
        f"the student reaches {percent(student.value)}{_share(student.value, teacher.value)}"
        f" the teacher's {percent(teacher.value)}; a random student has {percent(random.value)}"
        f" ({PROTOCOLS[kind]}, {student.n:,} images)."
    )
    if warning := caution(results):
        return f"Not proven: {rest} {warning} Give others with --monitor."
    if student.ci95[0] > random.ci95[1]:
        return f"It helped: {rest}"
    if student.ci95[1] - random.ci95[0] < _WORTH * max(teacher.value - random.value, 0.0):
        return f"It did not help: {rest} Train longer, or check the data and the learning rate."
    return f"Not proven: {rest} The intervals overlap; train longer or monitor more images."


def _share(student: float, teacher: float) -> str:
    return f", {student / teacher:.0%} of" if teacher else ", beside"


def caution(results: Sequence[Result]) -> str:
    """What the reader of these figures must know of their images; nothing where they lie apart from the training's."""
    if all(result.held_out is not False for result in results):
        return ""
    return "The images measured on lie where those trained on do: nothing here is sure to be held out."


def markdown_table(results: Sequence[Result]) -> str:
    """The figures as a Markdown table, and what must be known of the images."""
    if not results:
        return "Nothing was measured (no `--monitor`)."
    rows = [
        f"| {r.role} | {in_cell(r.model)} | {percent(r.value)} | {percent(r.ci95[0])} – {percent(r.ci95[1])} |"
        f" {r.n:,} |"
        for r in results
    ]
    table = "\n".join(
        [
            f"| | model | {PROTOCOLS[protocol_of(results)]} top-1 | 95 % interval | images |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )
    return f"{table}\n\n{caution(results)}".rstrip()


def percent(value: float) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * value:.1f}"
