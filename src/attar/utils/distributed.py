"""The only place that knows how many ranks there are. On one process every function is the identity.

Ranks are processes that torchrun (or anything that sets its environment variables) has started. They meet here.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from attar.errors import ConfigError, Interrupted, LostRankError, TrainingError, first_line
from attar.utils.signals import stop_if_requested

T = TypeVar("T")

# how the transports say that the other end is no more
_LOST = ("connection closed", "connection reset", "broken pipe", "timed out", "remote process exited")

PATIENCE_S = 43200.0
"""Half a day: for work of one rank that grows with the data, such as hashing all of it."""
_LOOKS_EVERY = 0.2  # seconds
_store: Store | None = None  # that the ranks have met in
_siblings: list[int] = []  # processes of the other ranks that this one's launcher has started, on this machine
_calls = itertools.count()


def launched_ranks() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if _is_together() else 1


def rank() -> int:
    """This process among all ranks, from 0."""
    return dist.get_rank() if _is_together() else 0


def is_main() -> bool:
    """Whether this is the rank that writes files and speaks."""
    return rank() == 0


def ranks_on_this_machine() -> int:
    """How many of the launched processes share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group(device: torch.device, *, timeout_s: float) -> Iterator[None]:
    """Within the block the launched ranks form a group; without a launcher the block changes nothing.

    Args:
        device: Where tensors of this rank live: NCCL for CUDA, Gloo for the CPU.
        timeout_s: Seconds a rank waits for the others.

    Raises:
        TrainingError: If the others do not come.
        Interrupted: If a signal comes while this rank waits for them.
    """
    global _store, _siblings
    if launched_ranks() == 1 or _is_together():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    own, timeout = device if device.type == "cuda" else None, timedelta(seconds=timeout_s)
    try:
        store, number, size = next(rendezvous("env://", timeout=timeout))
        store = PrefixStore(_agree_on_name(store, number, size, timeout_s=timeout_s), store)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=timeout, device_id=own)
        _store, _siblings = store, _find_siblings()
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the {launched_ranks()} ranks cannot meet ({first_line(error)})."
            " Start attar through torchrun, and check MASTER_ADDR and MASTER_PORT when it spans machines."
        ) from None
    yield
    _store, _siblings = None, []
    dist.destroy_process_group()  # not after an error: it would wait for ranks that have gone


def leave(code: int) -> NoReturn:
    """End this rank's process with an exit code, as `sys.exit` does, but without Python's finalization.

    The last call of a script whose ranks trained a sharded model. Threads of Gloo outlive a process group that such a
    model still names, and one that lets go of its last tensor while Python is taken apart aborts the process, whatever
    it has done (pytorch pull request 179291).
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _agree_on_name(store: Store, number: int, size: int, *, timeout_s: float) -> str:
    """A name that the ranks of this start have in common, and no earlier start had.

    torchrun keeps one store for a job and its restarts (pytorch issue 135712): what a rank that has died left there
    would be taken for its successor's. So each rank calls by a word of its own, the main one answers whatever it
    hears, and goes on when the caller has heard it, which the dead do not.
    """
    own, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s

    def until(key: str, *, call: str | None = None) -> None:
        while not store.check([key]):
            if call is not None:
                store.set(f"attar/answer/{store.get(call).decode()}", own)
            stop_if_requested("waiting for the other ranks")
            if time.monotonic() > deadline:
                raise RuntimeError(f"they have not come within {timeout_s:g} s")
            time.sleep(0.02)

    if number > 0:
        store.set(f"attar/call/{number}", own)
        until(f"attar/answer/{own}")
        name: str = store.get(f"attar/answer/{own}").decode()
        store.set(f"attar/heard/{name}/{number}", "")
        return name
    for other in range(1, size):
        call = f"attar/call/{other}"
        until(call)
        until(f"attar/heard/{own}/{other}", call=call)
    return own


def _find_siblings() -> list[int]:
    launcher, own = (socket.gethostname(), os.getppid()), os.getpid()
    return [process for theirs, process in gather((launcher, own)) if theirs == launcher and process != own]


def _wake_siblings() -> None:
    """A rank that was stopped (SIGSTOP) sees no signal of its launcher, which then waits in vain.

    torchrun kills what does not end, 30 s later. Awake, it finds that the others have gone, and ends like them. To a
    process that was not stopped SIGCONT does nothing.
    """
    for process in _siblings:
        with contextlib.suppress(OSError, AttributeError):  # it has gone; Windows has no such signal
            os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def peers_in_words() -> Iterator[None]:
    """Say in words that another rank has gone, where a collective operation fails because of it.

    Ranks of this machine that are stopped are woken, so that they end too.

    Raises:
        LostRankError: In place of the transport's own error.
    """
    try:
        yield
    except RuntimeError as error:
        how = next((words for words in _LOST if words in str(error).lower()), None)
        if world_size() == 1 or how is None:
            raise
        _wake_siblings()
        raise LostRankError(
            f"rank {rank()} lost another rank ({how}). That rank or the launcher says why;"
            " the same command goes on from the last checkpoint."
            + (" If it was only slow, raise timeout_s (--help has the flag)." if how == "timed out" else "")
        ) from None


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, in place and on each of them."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def largest_over_ranks(values: Tensor) -> Tensor:
    """The elementwise maximum over all ranks, in place and on each of them."""
    if world_size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def gather_rows(values: Tensor) -> Tensor:
    """Rows (B, ...) of all ranks, in their order, (ranks * B, ...); each rank has as many.

    Gradients go back to the rows' owner, summed over the ranks that used them.
    """
    if world_size() == 1:
        return values
    gathered: Tensor = _GatherRows.apply(values)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(world_size())]
        dist.all_gather(found, values.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return sum_over_ranks(gradient.contiguous()).chunk(world_size())[rank()]


def gather(value: T) -> list[T]:
    """The values of all ranks in order, on each of them. For small plain objects."""
    if world_size() == 1:
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def from_main(make: Callable[[], T], *, patience_s: float | None = None) -> T:
    """What `make` gives on the main rank, on each rank. For small plain objects.

    Args:
        make: Called on the main rank alone.
        patience_s: How long the others wait for it, where that may be longer than the group's timeout: they look from
            time to time whether it is done, and only then meet.

    Raises:
        Interrupted: On all ranks, where a signal stopped `make`. Any other error ends the main rank alone.
    """
    if world_size() == 1:
        return make()
    held: list[Any] = [None]
    if is_main():
        try:
            held = [make()]
        except Interrupted as stop:
            held = [stop]
    if patience_s is not None and _store is not None:
        _meet_when_done(_store, f"attar/done/{next(_calls)}", patience_s)
    dist.broadcast_object_list(held, src=0)
    if isinstance(held[0], Interrupted):
        raise held[0]
    return held[0]  # type: ignore[no-any-return]


def _meet_when_done(store: Store, key: str, patience_s: float) -> None:
    """The main rank says that it is done; the others wait for that, without a collective that could time out."""
    if is_main():
        store.set(key, "")
        return
    deadline = time.monotonic() + patience_s
    while not store.check([key]):
        if time.monotonic() > deadline:
            _wake_siblings()
            raise LostRankError(
                f"rank {rank()} waited {patience_s:g} s for the main rank, which says what it is doing."
            )
        time.sleep(_LOOKS_EVERY)


def wait_for_all() -> None:
    """Go on when every rank has come here."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def one_of_each_machine_first() -> Iterator[None]:
    """Run the block on the first rank of each machine, then on the others: what the first puts in a cache, all use."""
    is_first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not is_first:
        wait_for_all()
    yield
    if is_first:
        wait_for_all()


def pick_device(name: str) -> torch.device:
    """`auto` is this rank's CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device here.
    """
    own = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched_ranks() > 1:
        name = f"cuda:{own}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device '{name}' is none that attar runs on. Give auto, cpu, cuda or cuda:NUMBER.")
    if device.type == "cuda" and launched_ranks() > 1 and device.index != own:
        raise ConfigError(f"device '{name}' would serve several of the {launched_ranks()} ranks. Try --device cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices. Try --device auto,"
            " and no more ranks a machine than it has devices."
        )
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether `fp32`, `bf16` or `auto`, which is bf16 where the GPU has it, means bf16 autocast on this device."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def _is_together() -> bool:
    return dist.is_available() and dist.is_initialized()
