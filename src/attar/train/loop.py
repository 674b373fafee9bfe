"""The training loop. It knows no paper: a method gives the loss of a batch, callbacks do everything else."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

import torch
from torch import nn

from attar.errors import Interrupted, NonFiniteError, TrainingError
from attar.methods import Method
from attar.train.ahead import one_ahead
from attar.train.compiling import compiled_step
from attar.train.parallel import whole, without_sync
from attar.train.schedule import Schedule
from attar.train.state import TrainState
from attar.types import BadFile, Batch, StepOutput
from attar.utils.distributed import gather, largest_over_ranks, rank, sum_over_ranks, world_size
from attar.utils.seeding import seeded_torch
from attar.utils.signals import stop_requested

_SAME = 1e-5  # relative difference between gradient norms of ranks that rounding may explain


@dataclass
class StepRecord:
    """What happened in one step on all ranks, for callbacks.

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
    """Side effects of a run: logs, evaluation, checkpoints. Called in the order given, on every rank alike."""

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
    """Settings of the loop itself.

    `micro_batches` is the number of pieces in which a step's batch comes; `seed` names what the learner draws in its
    forward pass (dropout, stochastic depth), each piece on each rank something of its own. `compiled` says that blocks
    have been compiled, and that `compiled_in_steps` is around the call. With `ahead` a thread takes the next batch
    while a step runs: for a device that needs the host only to be told what to do.
    """

    total_steps: int
    micro_batches: int = 1
    seed: int = 0
    clip_norm: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False
    compiled: bool = False
    ahead: bool = False


def fit(
    method: Method,
    state: TrainState,
    batches: Iterator[Batch],
    schedule: Schedule,
    settings: LoopSettings,
    callbacks: Sequence[Callback],
) -> None:
    """Train from `state.step` to the last step, or until a callback has said that the run has converged.

    Raises:
        NonFiniteError: If a loss or the gradient is not finite on any rank; the weights are those of the step before.
        TrainingError: If the ranks' gradients differ.
        Interrupted: If SIGINT or SIGTERM came to any rank; callbacks have saved the state.
    """
    method.learner.train()
    parameters = [p for p in method.learner.parameters() if p.requires_grad]
    ahead = one_ahead(batches, method.fetch) if settings.ahead else None
    try:
        for callback in callbacks:
            callback.on_start(state)
        while state.step < settings.total_steps and not state.has_converged:
            started = time.perf_counter()
            record = StepRecord(state.step + 1, lr=schedule.at(state.step))
            for group in state.optimizer.param_groups:
                group["lr"] = record.lr * group.get("lr_scale", 1.0)

            last = _accumulate(method, ahead or batches, settings, record)
            record.grad_norm = _finite_norm(parameters, settings.clip_norm, last)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.update_ema()

            record.seconds = time.perf_counter() - started
            for callback in callbacks:
                callback.on_step(state, record)
            if state.step < settings.total_steps and not state.has_converged:
                _stop_if_asked(state.step)
        for callback in callbacks:
            callback.on_stop(state)
    except Interrupted:
        for callback in callbacks:
            callback.on_stop(state)
        raise
    finally:
        try:
            for callback in callbacks:
                callback.on_exit()
        finally:
            if ahead is not None:
                ahead.close()  # last, as it waits for what is being read


def _accumulate(method: Method, batches: Iterator[Batch], settings: LoopSettings, record: StepRecord) -> Batch:
    """Forward and backward of all micro-batches of a step. Losses are shares of the global mean, so they add up."""
    for number in range(settings.micro_batches):
        batch = next(batches)
        if batch.step != record.step - 1:
            raise AssertionError(f"the loader is at step {batch.step}, the loop at {record.step - 1}")
        draws = seeded_torch(settings.seed, "dropout", batch.step, number, rank(), device=settings.device)
        is_last = number == settings.micro_batches - 1
        with without_sync(method.learner, last=is_last), _autocast(settings), _compiled(settings), draws:
            output = method.training_step(batch.to(settings.device))
            (output.loss * world_size()).backward()  # type: ignore[no-untyped-call]  # wrappers average over ranks
            _add_up(output, batch, record)  # which waits for the loss: a GPU has its backward pass to do by then
    return batch


def _add_up(output: StepOutput, batch: Batch, record: StepRecord) -> None:
    """Add a micro-batch to the record of its step, over all ranks, and make sure that its loss is finite on each."""
    own = torch.stack([output.loss.detach(), *output.terms.values()]).double()
    counts = own.new_tensor([len(batch.samples), len(batch.bad_files)])
    # device-to-host sync; a loss that is not finite on one rank makes the sum so on all
    loss, *terms, images, bad_files = sum_over_ranks(torch.cat([own, counts])).tolist()
    if not math.isfinite(loss):
        _complain_of_loss(loss, dict(zip(output.terms, terms, strict=True)), batch, is_mine=not own[0].isfinite())
    record.loss += loss
    record.images += int(images)
    for name, value in zip(output.terms, terms, strict=True):
        record.terms[name] = record.terms.get(name, 0.0) + value
    if bad_files:
        record.bad_files.extend(bad for found in gather(batch.bad_files) for bad in found)


def _complain_of_loss(loss: float, terms: dict[str, float], batch: Batch, *, is_mine: bool) -> NoReturn:
    wrong = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    raise NonFiniteError(
        f"the loss of step {batch.step + 1} is {loss} ({', '.join(wrong) or 'no single term'});"
        f" the weights were not changed.\n{_suspects(batch, is_mine=is_mine)}"
    )


def _finite_norm(parameters: list[nn.Parameter], clip_norm: float | None, batch: Batch) -> float:
    """Clip the gradient and return its norm before that, which must be finite and the same on all ranks."""
    limit = clip_norm if clip_norm is not None else float("inf")
    norm = whole(nn.utils.clip_grad_norm_(parameters, limit))
    both = torch.stack([norm, -norm]).nan_to_num(nan=math.inf, neginf=math.inf)  # a maximum may lose a NaN
    largest, smallest = largest_over_ranks(both).tolist()
    if not (math.isfinite(largest) and math.isfinite(smallest)):
        raise NonFiniteError(
            f"the gradient of step {batch.step + 1} has norm {float(norm)}; the weights were not changed.\n"
            f"{_suspects(batch, is_mine=True)}"
        )
    if largest + smallest > _SAME * largest:
        raise TrainingError(
            f"the gradients of step {batch.step + 1} differ between ranks: norms {-smallest:.6g} to {largest:.6g}."
            " The method has called a part of its learner past the learner's forward, where nothing synchronises them."
        )
    return float(largest)


def _suspects(batch: Batch, *, is_mine: bool) -> str:
    """The images to look at, of the ranks where it went wrong, and what may help."""
    found = [name for names in gather(batch.names if is_mine else ()) for name in names]
    return (
        f"  images: {_names(found)}\n"
        "  Try a lower --optim.lr, --optim.clip-norm 1, or --precision fp32; look at the images above."
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _stop_if_asked(step: int) -> None:
    """Stop all ranks after the same step when a signal has come to any of them."""
    asked = torch.tensor(stop_requested() or 0)
    number = int(largest_over_ranks(asked))
    if number:
        raise Interrupted(
            number,
            f"stopped by {signal.Signals(number).name} after step {step}; a checkpoint is saved."
            " The same command goes on.",
        )


def _compiled(settings: LoopSettings) -> contextlib.AbstractContextManager[object]:
    return compiled_step() if settings.compiled else contextlib.nullcontext()


def _autocast(settings: LoopSettings) -> contextlib.AbstractContextManager[object]:
    return torch.autocast(settings.device.type, dtype=torch.bfloat16, enabled=settings.bf16)
