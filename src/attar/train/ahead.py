"""The next batch, made ready while a GPU works on this one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from attar.types import Batch


def one_ahead(batches: Iterator[Batch], fetch: Callable[[Batch], Batch]) -> Generator[Batch]:
    """The same batches in the same order, each fetched by a thread while the one before it is used.

    A thread and no process: what it waits for, memory that is copied and checksums, Python's lock does not cover.

    Args:
        batches: Read by the thread alone; an error of theirs comes where their batch would have come.
        fetch: What else is done to a batch beforehand (`Method.fetch`).
    """

    def fetched() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else fetch(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as thread:
        coming = thread.submit(fetched)
        while (batch := coming.result()) is not None:
            coming = thread.submit(fetched)
            yield batch
