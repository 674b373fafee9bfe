"""The next batch, made ready while a GPU works on this one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from attar.types import Batch


def one_ahead(batches: Iterator[Batch], fetch: Callable[[Batch], Batch]) -> Generator[Batch]:
    """The same batches in the same order, each but the first fetched by a thread while the one before it is used.

    A thread and no process: most of its time it copies memory and waits, which Python's lock does not cover. Whoever
    closes the generator waits for the read that is under way.

    Args:
        batches: The first is read by the caller's thread, where a loader starts its processes: torch tells of their
            deaths in the main thread alone. An error comes where its batch would have come.
        fetch: What else is done to a batch beforehand (`Method.fetch`).
    """

    def fetched() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else fetch(batch)

    with ThreadPoolExecutor(1, thread_name_prefix="next batch") as thread:
        batch = fetched()
        while batch is not None:
            coming = thread.submit(fetched)
            yield batch
            batch = coming.result()
