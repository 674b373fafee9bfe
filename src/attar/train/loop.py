"""The training loop. It knows no paper: a method gives the loss of a batch, callbacks do everything else."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from attar.errors import Interrupted, NonFiniteError
from attar.methods import Method
from attar.train.schedule import Schedule
from attar.train.state import TrainState
from attar.types import BadFile, Batch
from attar.utils.distributed import world_size
from attar.utils.signals import stop_requested


@dataclass
class StepRecord:
    """What happened in one step, for callbacks.

    Attributes:
        step: Steps done, this one included.
        loss: Weighted loss of the global batch.
        terms: Unweighted terms by name.
        lr: Learning rate of the step.
        grad_norm: Global norm of the gradient before clipping.
        images: Views in the step.
        seconds: Wall time of the step, waiting for data included.
        bad_files: Files found unreadable in this step.
    """

    step: int
    loss: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    lr: float = 0.0
    grad_norm: float = 0.0
    images: int = 0
    seconds: float = 0.0
    bad_files: list[BadFile] = field(default_factory=list)


class Callback(Protocol):
    """Side effects of a run: logs, evaluation, checkpoints. Called in the order given."""

    def on_start(self, state: TrainState) -> None: ...
    def on_step(self, state: TrainState, record: StepRecord) -> None: ...
    def on_stop(self, state: TrainState) -> None:
        """The run ends here, finished or interrupted."""
        ...

    def on_exit(self) -> None:
        """Always the last call, after an error too: give back what was taken, such as the terminal."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop itself."""

    total_steps: int
    parts: int = 1
    clip_norm: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False


def fit(
    method: Method,
    state: TrainState,
    batches: Iterator[Batch],
    schedule: Schedule,
    settings: LoopSettings,
    callbacks: Sequence[Callback],
) -> None:
    """Train from `state.step` to the last step.

    Raises:
        NonFiniteError: If a loss or the gradient is not finite; the weights are those of the step before.
        Interrupted: If SIGINT or SIGTERM came; callbacks have saved the state.
    """
    method.learner.train()
    parameters = [p for p in method.learner.parameters() if p.requires_grad]
    try:
        for callback in callbacks:
            callback.on_start(state)
        while state.step < settings.total_steps:
            started = time.perf_counter()
            record = StepRecord(state.step + 1, lr=schedule.at(state.step))
            for group in state.optimizer.param_groups:
                group["lr"] = record.lr

            last = _accumulate(method, batches, settings, record)
            record.grad_norm = _finite_norm(parameters, settings.clip_norm, last)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.update_ema(method.student)

            record.seconds = time.perf_counter() - started
            for callback in callbacks:
                callback.on_step(state, record)
            if (number := stop_requested()) is not None and state.step < settings.total_steps:
                name = signal.Signals(number).name
                raise Interrupted(
                    number,
                    f"stopped by {name} after step {state.step}; a checkpoint is saved. The same command goes on.",
                )
        for callback in callbacks:
            callback.on_stop(state)
    except Interrupted:
        for callback in callbacks:
            callback.on_stop(state)
        raise
    finally:
        for callback in callbacks:
            callback.on_exit()


def _accumulate(method: Method, batches: Iterator[Batch], settings: LoopSettings, record: StepRecord) -> Batch:
    """Forward and backward of all parts of a step. Losses are shares of the global mean, so they add up."""
    for part in range(settings.parts):
        batch = next(batches)
        if batch.step != record.step - 1:
            raise AssertionError(f"the loader is at step {batch.step}, the loop at {record.step - 1}")
        with _without_sync(method.learner, last=part == settings.parts - 1), _autocast(settings):
            output = method.training_step(batch.to(settings.device))
            values = torch.stack([output.loss.detach(), *output.terms.values()]).tolist()  # device-to-host sync
            loss, terms = values[0], dict(zip(output.terms, values[1:], strict=True))
            _check_finite(loss, terms, batch)
            (output.loss * world_size()).backward()  # type: ignore[no-untyped-call]  # wrappers average over ranks
        record.loss += loss
        record.images += len(batch.samples)
        record.bad_files.extend(batch.bad_files)
        for name, value in terms.items():
            record.terms[name] = record.terms.get(name, 0.0) + value
    return batch


def _check_finite(loss: float, terms: dict[str, float], batch: Batch) -> None:
    if torch.isfinite(torch.tensor(loss)):
        return
    wrong = [f"{name} is {value}" for name, value in terms.items() if value != value or abs(value) == float("inf")]
    raise NonFiniteError(
        f"the loss of step {batch.step + 1} is {loss} ({', '.join(wrong) or 'no single term'});"
        " the weights were not changed.\n"
        f"  images: {_names(batch)}\n"
        "  Try a lower --optim.lr, --optim.clip-norm 1, or --precision fp32; look at the images above."
    )


def _finite_norm(parameters: list[nn.Parameter], clip_norm: float | None, batch: Batch) -> float:
    limit = clip_norm if clip_norm is not None else float("inf")
    norm = float(nn.utils.clip_grad_norm_(parameters, limit))
    if not torch.isfinite(torch.tensor(norm)):
        raise NonFiniteError(
            f"the gradient of step {batch.step + 1} has norm {norm}; the weights were not changed.\n"
            f"  images: {_names(batch)}\n"
            "  Try a lower --optim.lr, --optim.clip-norm 1, or --precision fp32; look at the images above."
        )
    return norm


def _names(batch: Batch) -> str:
    shown = ", ".join(batch.names[:8])
    return shown + (f" and {len(batch.names) - 8} more" if len(batch.names) > 8 else "")


def _without_sync(learner: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
    """Parts before the last keep gradients local (DDP's `no_sync`)."""
    no_sync = getattr(learner, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def _autocast(settings: LoopSettings) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(settings.device.type, dtype=torch.bfloat16, enabled=settings.bf16)
