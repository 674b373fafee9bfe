"""What a model of images and sentences costs to keep and to run, each tower by itself, student beside teacher."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from attar.models import Backbone, TextTower
from attar.models.backbone import evaluating

_WARM_UP, _REPEATS = 3, 20
_SENTENCE = ["a photo of a cat."]


@dataclass(frozen=True)
class Costs:
    """Of both towers, where and how they were measured.

    Attributes:
        parameters: Number, of image and text tower.
        milliseconds: Median of one image, and of one sentence (its tokens: tokenising is left out).
        conditions: Device, threads, precision and input size, in words.
    """

    parameters: tuple[int, int]
    milliseconds: tuple[float, float]
    conditions: str

    @property
    def told(self) -> str:
        """In one line."""
        cells = [", ".join(_cells(*pair)) for pair in zip(self.parameters, self.milliseconds, strict=True)]
        return f"image tower {cells[0]}; text tower {cells[1]} ({self.conditions})"


@torch.no_grad()
def tower_costs(image: Backbone, text: TextTower) -> Costs:
    """Measure both towers where they lie, in their own precision, on this machine as it is now.

    Args:
        image: On any device.
        text: On any device; padded sentences of its context length.
    """
    images = torch.full((1, 3, image.img_size, image.img_size), 0.5, device=image.mean.device)
    weight = next(text.parameters())
    tokens = text.tokenise(_SENTENCE).to(weight.device)
    device = image.mean.device
    with evaluating(text):
        times = _median_ms(lambda: image.embed(images), device), _median_ms(lambda: text(tokens), weight.device)
    threads = torch.get_num_threads()
    on_cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu
    conditions = f"one image of {image.img_size} px, one sentence of {text.context_length} tokens,"
    conditions += f" {str(weight.dtype).removeprefix('torch.')}, {where}"
    return Costs((image.num_parameters, sum(p.numel() for p in text.parameters())), times, conditions)


def costs_table(student: Costs, teacher: Costs) -> str:
    """Markdown: a row for each tower and for both, and what the times are of."""
    lines = ["| | student | | teacher | |", "|---|---|---|---|---|"]
    for row, name in enumerate(("image tower", "text tower")):
        cells = [
            cell for costs in (student, teacher) for cell in _cells(costs.parameters[row], costs.milliseconds[row])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    both = [cell for costs in (student, teacher) for cell in (_millions(sum(costs.parameters)), "")]
    lines.append(f"| both | {' | '.join(both)} |")
    measured = f"Median of {_REPEATS} passes after {_WARM_UP}: {student.conditions}"
    measured += "" if teacher.conditions == student.conditions else f"; the teacher: {teacher.conditions}"
    return "\n".join(lines) + f"\n\n{measured}.\n"


def _median_ms(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, with nothing else waiting on the device."""
    found = []
    for _ in range(_WARM_UP + _REPEATS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # device-to-host sync
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found[_WARM_UP:])


def _cells(parameters: int, milliseconds: float) -> tuple[str, str]:
    return _millions(parameters), f"{_short(milliseconds)} ms"


def _millions(count: int) -> str:
    return f"{_short(count / 1e6)} M"


def _short(value: float) -> str:
    """Three digits, or all before the point where these are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
