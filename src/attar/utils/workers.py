"""What a data loader's worker process does before anything else."""

from __future__ import annotations

import contextlib
import ctypes

from attar.utils.signals import leave_signals_to_parent

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers of glibc's mallopt (malloc.h)
_KEPT, _LARGEST_KEPT = 128 << 20, 32 << 20  # bytes; glibc takes no larger second one


def begin_worker(worker: int) -> None:
    """Signals count only when the training process sends them, and memory that is freed is kept."""
    leave_signals_to_parent(worker)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process use memory again that it has freed, 128 MB at most, where its C library is glibc.

    By default blocks of the size of an image go back to the system each time, and their pages come back one by one,
    each cleared, with an interrupt: of a photo of 1600 x 1200 pixels 2,000.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
