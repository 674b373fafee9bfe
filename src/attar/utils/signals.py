"""SIGINT and SIGTERM ask long work to stop at its next safe point; a second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from attar.errors import Interrupted

_received: int | None = None
_is_polite = False
_is_postponed = False
_GOES_ON = "The same command goes on."
_remedy = _GOES_ON
_LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ  # torchrun repeats a scheduler's signal, and kills what does not end


@contextlib.contextmanager
def polite_stop(*, keeps: bool = True) -> Iterator[None]:
    """Within the block the first signal is remembered for `stop_requested`; the second ends the process.

    `keeps` says whether what was done until then is of use to the same command, for the message.

    Under torchrun a second one changes nothing: a scheduler signals the launcher and its ranks alike, and the launcher
    passes it on.

    Within another such block, and outside the main thread, where Python allows no handlers, it changes nothing. Worker
    processes, which inherit the handlers when forked, take no notice: the main process ends them
    (`leave_signals_to_parent`).
    """
    global _received, _is_polite, _remedy
    if _is_polite or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def remember(number: int, _frame: FrameType | None) -> None:
        global _received
        if os.getpid() != owner:
            return
        if _received is not None and not _LAUNCHED:
            os._exit(128 + number)
        _received = number

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    _received, _is_polite = None, True
    _remedy = _GOES_ON if keeps else "The same command begins anew."
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _is_polite, _remedy = None, False, _GOES_ON


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """After the block SIGINT and SIGTERM are handled as before it, whatever a library has set for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def leave_signals_to_parent(_worker: int) -> None:
    """First thing in a loader's worker: SIGINT and SIGTERM count only when the training process sends them.

    Terminals, schedulers and launchers signal every process of a job, some of them twice, and the training process
    still needs its workers to finish the step. It ends them itself; when it is killed they notice and end, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not tell who has sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def end_with_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()


def stop_requested() -> int | None:
    """The signal that asked to stop, or None."""
    return _received


@contextlib.contextmanager
def signals_postponed() -> Iterator[None]:
    """Within the block `stop_if_requested` lets work go on: what all ranks do together ends for all or for none."""
    global _is_postponed
    _is_postponed = True
    try:
        yield
    finally:
        _is_postponed = False


@contextlib.contextmanager
def stopped_at_once(what: str) -> Iterator[None]:
    """Within the block a signal waits for no safe point: what runs has none, such as a download, and nothing is lost.

    Raises:
        Interrupted: If a signal comes.
    """
    if not _is_polite or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number, f"stopped by {signal.Signals(number).name} while {what}. {_remedy}")

    with handlers_kept():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, leave)
        yield


def stop_if_requested(what: str) -> None:
    """A safe point in work that saves nothing itself.

    Raises:
        Interrupted: If a signal came.
    """
    if _received is not None and not _is_postponed:
        name = signal.Signals(_received).name
        raise Interrupted(_received, f"stopped by {name} while {what}. {_remedy}")
