"""One process at a time: locks of files, which the system gives back when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from attar.utils.io import storage_errors
from attar.utils.signals import stop_if_requested

_LOOKS_EVERY = 0.2  # seconds


def take_lock(file: IO[str]) -> bool:
    """Whether this process holds the lock of an open file now; True too where there are no locks to be had.

    Workers do not inherit it when they are forked.
    """
    try:
        import fcntl  # not on Windows

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # others: a file system without locks
    return True


@contextlib.contextmanager
def alone_at(path: Path, *, when_taken: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Wait until no other process is at the file, which is made where there is none; then keep others away.

    Args:
        path: The file.
        when_taken: Called once if another process is there.

    Raises:
        Interrupted: If a signal comes while this process waits.
        RunDirectoryError: If the file cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        is_alone = take_lock(file)
        if not is_alone:
            when_taken()
        while not is_alone:
            stop_if_requested("waiting for another process")
            time.sleep(_LOOKS_EVERY)
            is_alone = take_lock(file)
        yield
