"""What a model of images and sentences costs to keep and to run, each tower by itself, student beside teacher.

A machine that does other work too is slower at one moment than at the next. So models are measured in turn, pass by
pass, and what the times say of each other holds better than what they say alone; where they spread widely it is said.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attar.models import TwoTowers
from attar.models.backbone import evaluating

STEADY = 0.2
"""As far as the middle half of the times may lie apart, as a share of their median."""
_TURNS = 12  # of each tower, of a pass that warms it up and one that counts
_SENTENCE = ["a photo of a cat."]


@dataclass(frozen=True)
class Times:
    """Of passes of one tower.

    Attributes:
        median: Milliseconds.
        spread: How far the middle half of the times lies apart, as a share of the median.
    """

    median: float
    spread: float = 0.0

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Times:
        """Summed up."""
        low, median, high = statistics.quantiles(milliseconds, n=4)
        return cls(median, (high - low) / median)

    @property
    def is_steady(self) -> bool:
        """Whether the machine left the measurement in peace."""
        return self.spread <= STEADY

    def __str__(self) -> str:
        return f"{_short(self.median)} ms{'' if self.is_steady else ' (unsteady)'}"


@dataclass(frozen=True)
class Costs:
    """Of both towers, where and how they were measured.

    Attributes:
        parameters: Number, of image and text tower.
        times: Of one image, and of one sentence (its tokens: tokenising is left out).
        conditions: Device, threads, precision and input size, in words.
    """

    parameters: tuple[int, int]
    times: tuple[Times, Times]
    conditions: str

    @property
    def told(self) -> str:
        """In one line."""
        cells = [", ".join(_cells(*pair)) for pair in zip(self.parameters, self.times, strict=True)]
        return f"image tower {cells[0]}; text tower {cells[1]} ({self.conditions})"


@torch.no_grad()
def tower_costs(*models: TwoTowers) -> list[Costs]:
    """Measure both towers of each model where they lie, in their own precision, on this machine as it is now.

    Args:
        models: On any device; padded sentences of their context length.
    """
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model.text))
        times = _in_turn([pass_of for model in models for pass_of in _passes(model)])
    pairs = zip(times[::2], times[1::2], strict=True)
    return [_costs(model, pair) for model, pair in zip(models, pairs, strict=True)]


def costs_table(student: Costs, teacher: Costs) -> str:
    """Markdown: a row for each tower and for both, what the times are of, and whether they can be relied on."""
    lines = ["| | student | | teacher | |", "|---|---|---|---|---|"]
    for row, name in enumerate(("image tower", "text tower")):
        cells = [cell for costs in (student, teacher) for cell in _cells(costs.parameters[row], costs.times[row])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    both = [cell for costs in (student, teacher) for cell in (_millions(sum(costs.parameters)), "")]
    lines.append(f"| both | {' | '.join(both)} |")
    measured = f"Median of {_TURNS} passes, student and teacher in turn: {student.conditions}"
    measured += "" if teacher.conditions == student.conditions else f"; the teacher: {teacher.conditions}"
    return "\n".join(lines) + f"\n\n{measured}.{_warning([*student.times, *teacher.times])}\n"


def _warning(times: Sequence[Times]) -> str:
    worst = max(times, key=lambda one: one.spread)
    if worst.is_steady:
        return ""
    return (
        f" Unsteady: the machine did other work meanwhile, and the middle half of the times lies up to"
        f" {worst.spread:.0%} of the median apart ({STEADY:.0%} is steady). Take them for no more than a hint, or give"
        " the run's command again when it is idle."
    )


def _passes(model: TwoTowers) -> tuple[Callable[[], None], Callable[[], None]]:
    """A pass of one image, and of one sentence, each to its end on the device."""
    image, text = model.image, model.text
    images = torch.full((1, 3, image.img_size, image.img_size), 0.5, device=image.mean.device)
    tokens = text.tokenise(_SENTENCE).to(next(text.parameters()).device)
    return lambda: _ended(image.embed(images)), lambda: _ended(text(tokens))


def _ended(found: torch.Tensor) -> None:
    if found.is_cuda:
        torch.cuda.synchronize(found.device)  # device-to-host sync


def _in_turn(passes: Sequence[Callable[[], None]]) -> list[Times]:
    found: list[list[float]] = [[] for _ in passes]
    for _ in range(_TURNS):
        for one, times in zip(passes, found, strict=True):
            one()  # what another model has put out of the caches comes back
            started = time.perf_counter()
            one()
            times.append(1000 * (time.perf_counter() - started))
    return [Times.of(times) for times in found]


def _costs(model: TwoTowers, times: tuple[Times, Times]) -> Costs:
    image, text = model.image, model.text
    device, threads = image.mean.device, torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    conditions = f"one image of {image.img_size} px, one sentence of {text.context_length} tokens,"
    conditions += f" {str(next(text.parameters()).dtype).removeprefix('torch.')}, {where}"
    return Costs((image.num_parameters, sum(p.numel() for p in text.parameters())), times, conditions)


def _cells(parameters: int, times: Times) -> tuple[str, str]:
    return _millions(parameters), str(times)


def _millions(count: int) -> str:
    return f"{_short(count / 1e6)} M"


def _short(value: float) -> str:
    """Three digits, or all before the point where these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
