"""How fast files are on this machine: medians of passes that take turns, so that a busy moment hits all alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from attar.export.tower_costs import STEADY, Times

BATCHES = (1, 32)
"""One image for the latency, many for the throughput."""

_LEAST, _LONGEST_S = 3, 20.0  # rounds that are timed in any case; seconds after which they are enough


@dataclass(frozen=True)
class Speed:
    """Of one way to run a model.

    Attributes:
        milliseconds: Median of a pass, by number of images in it.
        repeats: Passes that were timed, by number of images.
        spreads: How far the middle half of their times lies apart, as a share of the median.
    """

    milliseconds: Mapping[int, float]
    repeats: Mapping[int, int]
    spreads: Mapping[int, float]

    @property
    def unsteady(self) -> str:
        """A word to stand behind figures where the machine did other work meanwhile, or nothing."""
        return "" if all(spread <= STEADY for spread in self.spreads.values()) else " (unsteady)"

    def per_second(self, images: int) -> float:
        """Images in a second, in batches of so many."""
        return 1000 * images / self.milliseconds[images]


def speeds(ways: Mapping[str, Callable[[int], object]], *, repeats: int) -> dict[str, Speed]:
    """Time several ways to run a model, each once in every round, after a pass of its own that is not timed.

    Args:
        ways: By name, what runs a batch of so many images.
        repeats: Rounds, fewer where they would take long.
    """
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in BATCHES} for name in ways}
    for size in BATCHES:
        began = time.perf_counter()
        for done in range(repeats):
            if done >= _LEAST and time.perf_counter() - began > _LONGEST_S:
                break
            for name, run in ways.items():
                run(size)  # threads of the way before may still be spinning
                started = time.perf_counter()
                run(size)
                times[name][size].append(1000 * (time.perf_counter() - started))
    return {
        name: Speed(
            {size: statistics.median(taken) for size, taken in of.items()},
            {size: len(taken) for size, taken in of.items()},
            {size: Times.of(taken).spread if len(taken) > 1 else 0.0 for size, taken in of.items()},
        )
        for name, of in times.items()
    }


def machine() -> str:
    """This machine, in words."""
    threads = torch.get_num_threads()
    return f"{_processor()}, {os.cpu_count()} cores, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def speed_table(found: Mapping[str, Speed], sizes: Mapping[str, int]) -> str:
    """Markdown: a row for each way, with its size on disk where it is a file.

    Args:
        found: By name.
        sizes: Bytes of the files among them.
    """
    one, many = BATCHES
    lines = [f"| | {one} image | {many} images | images a second | on disk |", "|---|---|---|---|---|"]
    for name, speed in found.items():
        size = f"{sizes[name] / 1e6:.2f} MB" if name in sizes else ""
        lines.append(
            f"| {name}{speed.unsteady} | {speed.milliseconds[one]:.2f} ms | {speed.milliseconds[many]:.1f} ms"
            f" | {speed.per_second(many):,.0f} | {size} |"
        )
    rounds = " and ".join(str(count) for count in next(iter(found.values())).repeats.values())
    text = "\n".join(lines) + f"\n\nMedian of {rounds} passes that took turns, on {machine()}."
    if any(speed.unsteady for speed in found.values()):
        text += " Unsteady: the machine did other work meanwhile; export again when it is idle."
    return text + "\n"
