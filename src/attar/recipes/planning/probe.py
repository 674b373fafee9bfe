"""Some steps of a real training, timed: through the verb's own method, stream, loader and loop."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from attar.config import Config
from attar.data.loader import batches_ahead
from attar.recipes.planning.parts import Memory, bytes_below
from attar.recipes.planning.scenes import draw_scenes
from attar.recipes.training import RunSettings, Training, train
from attar.train import StepRecord, TrainState
from attar.train.callbacks import NoEffect
from attar.utils.distributed import world_size
from attar.utils.memory import forget_peak, own_share, peak_resident
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory

T = TypeVar("T")

_COLD = 2  # steps in which kernels are chosen and memory is taken for the first time
_NEVER = 1_000_000_000  # steps between checkpoints: the one at the end is timed


@dataclass(frozen=True)
class Steps:
    """What a probe has found.

    Attributes:
        seconds: Of a step once all runs evenly.
        timed: Steps that this is known from.
        start: Seconds before that beyond the steps': scenes drawn, first looks at data, loader processes, cold steps.
        save: Of a checkpoint.
        checkpoint: Its bytes.
        loaders: Bytes of all loader processes; None where nobody knows.
    """

    seconds: float
    timed: int
    start: float
    save: float
    checkpoint: int
    loaders: int | None

    @property
    def known(self) -> str:
        """In words."""
        return f"median of {self.timed} steps"


class Stopwatch(NoEffect):
    """Notes when each step is done, and ends the training after the `last`; stands before what saves checkpoints."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.marks: list[float] = []
        self.stopped = self.left = 0.0
        self.loaders: int | None = 0

    def on_start(self, state: TrainState) -> None:
        """The first mark."""
        self.marks.append(time.perf_counter())

    def on_step(self, state: TrainState, record: StepRecord) -> None:
        """A mark; the last one ends the training."""
        self.marks.append(time.perf_counter())
        if len(self.marks) > self.last:
            self.loaders = _held_by_children()
            state.notes["converged"] = True

    def on_stop(self, state: TrainState) -> None:
        """A checkpoint is saved next."""
        self.stopped = time.perf_counter()

    def on_exit(self) -> None:
        """It was saved."""
        self.left = time.perf_counter()


def probe(training: Training, settings: RunSettings, state: TrainState, folder: Path, *, probe_steps: int) -> Steps:
    """Time some steps of a training and a checkpoint after them; the state has learned from them.

    Steps are dropped until kernels are warm and what the loader made ahead meanwhile is used up. Scenes that a run of
    an epoch or more keeps are drawn beforehand, as its later steps find them drawn.

    Args:
        training: What is trained, as the run will.
        settings: How it runs.
        state: New, at the step to begin with.
        folder: A new one, for what the training writes.
        probe_steps: Steps that are timed, where there are so many.
    """
    assert isinstance(settings, Config)
    folder.mkdir()
    run = RunDirectory(folder, run_id="probe", is_new=True)
    size = training.batch_size // training.micro_batches // world_size()
    ahead = -(-batches_ahead(size, training.stream.img_size, training.workers) // training.micro_batches)
    last = min(_COLD + ahead + probe_steps, training.total_steps - state.step)
    watch = Stopwatch(last)
    quiet = settings.replace(checkpoint={"every": _NEVER, "keep": 1})
    begun = time.perf_counter()
    if training.total_steps * training.batch_size >= training.stream.epoch_length:
        draw_scenes(training.stream.source)
    train(training, quiet, run, state, Log(is_silent=True), identity={}, judges=lambda metrics: [watch])
    state.notes.pop("converged")
    steps = [after - before for before, after in itertools.pairwise(watch.marks)]
    timed = steps[min(_COLD + ahead, last - 1) :]
    steady = steady_seconds(timed, training.workers)
    before = watch.marks[0] - begun + sum(steps[: -len(timed)])
    return Steps(
        seconds=steady,
        timed=len(timed),
        start=max(0.0, before - steady * (len(steps) - len(timed))),
        save=watch.left - watch.stopped,
        checkpoint=bytes_below(run.checkpoints),
        loaders=watch.loaders,
    )


def steady_seconds(steps: Sequence[float], workers: int) -> float:
    """Seconds of a step: the median over rounds, in each of which every loader process hands over one batch.

    Where loading is what takes time, they hand over together, and single steps are now quick, now slow.
    """
    size = max(1, workers)
    rounds = [steps[end - size : end] for end in range(size, len(steps) + 1, size)] or [steps]
    return statistics.median(statistics.fmean(one) for one in rounds)


def timed(do: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what came of it)."""
    begun = time.perf_counter()
    found = do()
    return time.perf_counter() - begun, found


def forget_peaks(device: torch.device) -> None:
    """Let peaks of memory be those from here on."""
    forget_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def held(device: torch.device, *, more: int, loaders: int | None) -> Memory:
    """What this process has held at its peak.

    Args:
        device: Where models ran.
        more: Bytes that the run will hold beside that.
        loaders: Bytes of loader processes.
    """
    of_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Memory(peak_resident(), more, of_device, loaders)


def _held_by_children() -> int | None:
    shares = [own_share(child.pid) for child in multiprocessing.active_children() if child.pid]
    return None if None in shares else sum(share for share in shares if share)
