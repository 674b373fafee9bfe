"""One training, whatever is learned: the stream of views, the loop, and what goes with every run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import nn

from attar.config import CheckpointConfig, OptimConfig
from attar.data.base import Source, lost_images
from attar.data.loader import Stream, is_readable, training_batches
from attar.errors import TrainingError
from attar.methods import Method
from attar.train import (
    BadFiles,
    Callback,
    Checkpoints,
    ConsoleLog,
    LoopSettings,
    Metrics,
    Schedule,
    TensorBoard,
    TrainState,
    base_lr,
    compile_blocks,
    compiled_in_steps,
    fit,
    load_checkpoint,
)
from attar.types import Batch
from attar.utils.distributed import from_main, is_main, rank, uses_bf16, world_size
from attar.utils.progress import Log
from attar.utils.run_directory import RunDirectory, refuse_to_replace

_PREPARATION_STEPS = 50  # whose batches a method may look at before it begins


class RunSettings(Protocol):
    """What a verb's settings say of how any training runs."""

    @property
    def seed(self) -> int: ...
    @property
    def precision(self) -> Literal["auto", "bf16", "fp32"]: ...
    @property
    def log_every(self) -> int | None: ...
    @property
    def tensorboard(self) -> bool: ...
    @property
    def max_bad_share(self) -> float: ...
    @property
    def checkpoint(self) -> CheckpointConfig: ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, on what, for how long.

    Attributes:
        method: How the student learns.
        stream: Views to learn from, with labels where the method learns from them.
        batch_size: Views per step over all ranks.
        optim: Of optimizer and schedule.
        total_steps: Length of the run.
        device: This rank's.
        workers: Loader processes.
        takes_whole_steps: The method splits a step by itself where it does not fit in memory (`optim.accumulate`).
        compiled: Models whose blocks are compiled.
    """

    method: Method
    stream: Stream
    batch_size: int
    optim: OptimConfig
    total_steps: int
    device: torch.device
    workers: int
    takes_whole_steps: bool = False
    compiled: tuple[nn.Module, ...] = ()

    @property
    def micro_batches(self) -> int:
        """Pieces that a step comes in."""
        return 1 if self.takes_whole_steps else self.optim.accumulate

    @property
    def steps_per_epoch(self) -> float:
        """Perhaps a fraction."""
        return self.stream.epoch_length / self.batch_size


def resume(
    run: RunDirectory, state: TrainState, identity: Mapping[str, Any], log: Log, *, total_steps: int, anyway: bool
) -> None:
    """Bring `state` to the newest whole checkpoint of a run, and say so.

    Args:
        run: Whose checkpoints.
        state: Of a learner as it was built.
        identity: What they must agree with.
        log: For people.
        total_steps: Length of the run.
        anyway: Other data and another teacher are no error.

    Raises:
        CheckpointError: If the newest whole one belongs to something else.
        RunDirectoryError: If none is whole and the run has come to its end.
    """
    resumed = load_checkpoint(run.checkpoints, state, dict(identity), anyway=anyway, say=log.say)
    if resumed is not None:
        done = " (complete)" if state.step >= total_steps else ""
        log.say(f"  resume   from {resumed.name}{done}")
    elif not run.is_new:
        from_main(lambda: refuse_to_replace(run))
        log.say("  resume   no checkpoint is whole: from the beginning")


def train(
    training: Training,
    settings: RunSettings,
    run: RunDirectory,
    state: TrainState,
    log: Log,
    *,
    identity: Mapping[str, Any],
    judges: Callable[[Metrics], Sequence[Callback]] = lambda metrics: (),
) -> None:
    """Train from where `state` stands to the end.

    Args:
        training: What is trained.
        settings: How it runs.
        run: Where it writes.
        state: Of the method's learner, resumed or new.
        log: For people.
        identity: What its checkpoints belong to.
        judges: Callbacks that judge what learns, given where they write; checkpoints come after them.

    Raises:
        NonFiniteError: If a loss or gradient is not finite.
        TrainingError: If a step needs more memory than the device has.
        DataError: If too many images cannot be read.
        Interrupted: If SIGINT or SIGTERM came; a checkpoint is saved.
    """
    batches: Callable[..., Iterator[Batch]] = partial(
        training_batches,
        training.stream,
        batch_size=training.batch_size,
        micro_batches=training.micro_batches,
        rank=rank(),
        world_size=world_size(),
        workers=training.workers,
    )
    if state.step == 0:
        said = training.method.prepare(batches(start_step=0, num_steps=min(_PREPARATION_STEPS, training.total_steps)))
        if said:
            log.say("  check    " + said.replace("\n", "\n           "))
    compiled = _compile(training, log)
    loop = LoopSettings(
        total_steps=training.total_steps,
        micro_batches=training.micro_batches,
        seed=settings.seed,
        clip_norm=training.optim.clip_norm,
        device=training.device,
        bf16=uses_bf16(settings.precision, training.device),
        compiled=compiled,
        ahead=training.device.type == "cuda",
    )
    base = base_lr(training.optim, training.batch_size)
    schedule = Schedule(base, training.total_steps, training.steps_per_epoch, training.optim)
    stream = batches(start_step=state.step, num_steps=training.total_steps)
    callbacks = _callbacks(training, settings, run, log, identity, judges)
    with memory_in_words(training), compiled_in_steps() if compiled else contextlib.nullcontext():
        fit(training.method, state, stream, schedule, loop, callbacks)


def _compile(training: Training, log: Log) -> bool:
    """Whether the blocks of what shall be compiled are, and say so."""
    if not training.compiled:
        return False
    reason = compile_blocks(training.compiled, training.device)
    log.say(f"  compile  {f'off: {reason}' if reason else 'transformer blocks, in the first steps'}")
    return reason is None


def _callbacks(
    training: Training,
    settings: RunSettings,
    run: RunDirectory,
    log: Log,
    identity: Mapping[str, Any],
    judges: Callable[[Metrics], Sequence[Callback]],
) -> list[Callback]:
    total = training.total_steps
    log_every = settings.log_every or max(1, total // 100)
    metrics = Metrics(run.metrics, every=log_every, total_steps=total)
    callbacks: list[Callback] = []
    if is_main():
        callbacks += [
            bad_files_of(training.stream.source, settings.max_bad_share, run, log),
            ConsoleLog(log, total_steps=total, every=log_every),
            metrics,
        ]
    if settings.tensorboard and is_main():
        callbacks.append(TensorBoard(run.path / "tensorboard", every=log_every, total_steps=total))
    callbacks += judges(metrics)
    every = checkpoint_every(training, settings)
    callbacks.append(Checkpoints(run.checkpoints, identity, every=every, keep=settings.checkpoint.keep))
    return callbacks


def checkpoint_every(training: Training, settings: RunSettings) -> int:
    """Steps between checkpoints."""
    tenth = check_every(None, training.total_steps)
    return settings.checkpoint.every or min(tenth, max(int(training.steps_per_epoch), 100))


def check_every(every: int | None, total_steps: int, *, times: int = 10) -> int:
    """Steps between judgements: as given, or so many judgements in the run."""
    return every or max(1, math.ceil(total_steps / times))


def bad_files_of(source: Source, max_share: float, run: RunDirectory, log: Log) -> BadFiles:
    """Who counts a run's unreadable files; a mended one counts no longer."""
    lost = lost_images(source)
    return BadFiles(
        run.bad_files,
        log,
        num_samples=len(source) + lost,
        max_share=max_share,
        lost=lost,
        is_bad=lambda row, name: row < len(source) and source.name(row) == name and not is_readable(source, row),
    )


@contextlib.contextmanager
def memory_in_words(training: Training) -> Iterator[None]:
    """Name the setting to turn when a step does not fit into the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, pieces = training.batch_size // world_size(), training.optim.accumulate
        more = next((n for n in range(pieces + 1, size + 1) if size % n == 0), None)
        remedy = (
            f"--optim.accumulate {more}, the same batch in smaller pieces" if more else "a smaller --img-size or model"
        )
        reason = ". ".join(str(error).split(". ")[:2]).rstrip(".")
        raise TrainingError(
            f"{size // pieces} views at a time need too much memory ({reason}). Try {remedy}."
        ) from None
