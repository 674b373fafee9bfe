"""A plan: a list of what a run does, how often, and how long each takes; what it holds in memory and on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attar.utils.progress import duration

MEASURED = "measured"


@dataclass(frozen=True)
class Part:
    """Something that a run does.

    Attributes:
        what: In a few words.
        seconds: Of one time.
        times: How often; perhaps a fraction, where a share is done.
        known: Whether the seconds were measured, or scaled from what was measured.
    """

    what: str
    seconds: float
    times: float = 1
    known: str = MEASURED

    @property
    def total(self) -> float:
        """Seconds of all times."""
        return self.seconds * self.times


@dataclass(frozen=True)
class Memory:
    """What a run holds in memory at its peak, in bytes; None where nobody knows.

    Attributes:
        process: Of the main process, as the probe held it.
        more: What the run will hold beside that: kept images that the probe did not look at.
        device: Of the GPU; None on a CPU.
        loaders: Of all loader processes together, which are counted apart.
    """

    process: int | None
    more: int = 0
    device: int | None = None
    loaders: int | None = None

    @property
    def peak(self) -> int | None:
        """Of the main process of the run."""
        return None if self.process is None else self.process + self.more


@dataclass(frozen=True)
class Concern:
    """What is wrong or doubtful: value, rule and remedy.

    Attributes:
        subject: What it is about, a word or two.
        text: Sentences.
    """

    subject: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a verb would do with these settings.

    Attributes:
        verb: Its name.
        settings: All of them, as `--config` reads them.
        found: What there is: models, images, tasks; by name.
        parts: What is done, in order.
        images_per_second: While it trains or embeds; None where it does neither.
        memory: At the peak; None where nothing was run.
        disk: Bytes that stay on the disk, by what they are.
        free: Bytes that are free where they go; None where nothing is written.
        concerns: What is wrong or doubtful.
        price_per_hour: Of the machine.
    """

    verb: str
    settings: Mapping[str, Any]
    found: Mapping[str, Any]
    parts: Sequence[Part] = ()
    images_per_second: float | None = None
    memory: Memory | None = None
    disk: Mapping[str, int] = field(default_factory=dict)
    free: int | None = None
    concerns: Sequence[Concern] = ()
    price_per_hour: float | None = None

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(part.total for part in self.parts)

    @property
    def cost(self) -> float | None:
        """Of the whole run; None without a price."""
        return None if self.price_per_hour is None else self.price_per_hour * self.seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """The plan and its sums in plain values."""
        sums = {"seconds": self.seconds, "cost": self.cost}
        parts = [asdict(part) | {"total": part.total} for part in self.parts]
        memory = None if self.memory is None else asdict(self.memory) | {"peak": self.memory.peak}
        return asdict(self) | sums | {"parts": parts, "memory": memory}

    def __str__(self) -> str:
        """Lines for people."""
        return "\n".join([*self._found(), *self._times(), *self._room(), *self._doubts()])

    def _found(self) -> list[str]:
        return [f"  {name:9}{_in_words(value)}" for name, value in self.found.items()]

    def _times(self) -> list[str]:
        if not self.parts:
            return []
        width = max(len(part.what) for part in self.parts)
        lines = ["", f"  {'':{width}}{'times':>10}{'s each':>10}{'s':>10}   how it is known"]
        for part in self.parts:
            times = f"{part.times:,.0f}"
            lines.append(f"  {part.what:{width}}{times:>10}{part.seconds:>10.3g}{part.total:>10,.1f}   {part.known}")
        rate = "" if self.images_per_second is None else f", {self.images_per_second:,.0f} images/s"
        lines += ["", f"  time     {duration(self.seconds)}{rate}"]
        if self.cost is not None:
            lines.append(f"  cost     {self.cost:,.2f} at {self.price_per_hour:,.2f} an hour")
        return lines

    def _room(self) -> list[str]:
        lines = []
        if self.memory is not None:
            held = {"main process": self.memory.peak} | (
                {} if self.memory.device is None else {"GPU": self.memory.device}
            )
            words = [f"{name} {size_in_words(size)}" for name, size in held.items()]
            if self.memory.loaders:
                words.append(f"loader processes {size_in_words(self.memory.loaders)} beside it")
            lines.append(f"  memory   {', '.join(words)}")
        if self.disk:
            free = "" if self.free is None else f"; {size_in_words(self.free)} free"
            each = ", ".join(f"{name} {size_in_words(size)}" for name, size in self.disk.items())
            lines.append(f"  disk     {size_in_words(sum(self.disk.values()))} ({each}){free}")
        return lines

    def _doubts(self) -> list[str]:
        if not self.concerns:
            return ["  warnings none"]
        return [f"  warning  {concern.subject}: {concern.text}" for concern in self.concerns]


def free_at(out: str) -> int:
    """Bytes that are free where a run directory is, or would be."""
    folder = Path(out).expanduser().resolve()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def bytes_below(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_in_words, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:,}" if isinstance(value, int) else str(value)


def size_in_words(count: int | None) -> str:
    """Bytes as people say them."""
    if count is None:
        return "not known"
    if count < 1e5:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
