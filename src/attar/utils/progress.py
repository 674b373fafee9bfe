"""Every job longer than two seconds shows how far it is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from attar.errors import AttarError, first_line
from attar.utils.io import storage_errors
from attar.utils.plain import plain
from attar.utils.signals import stop_if_requested

T = TypeVar("T")
_LINE_EVERY = 10  # seconds between plain lines where there is no terminal

# names of strangers are no markup, and ":cat:" is a name
console = Console(stderr=False, highlight=False, soft_wrap=True, markup=False, emoji=False)


def progress_bar(*, transient: bool = True) -> Progress:
    """A rich bar with count, rate text and time left; silent when the output is not a terminal."""
    return Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )


def track(
    items: Iterable[T], description: str, *, total: int, unit: str, size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Yield the items, show progress once two seconds have passed, and stop between items when a signal asks.

    Args:
        items: What to iterate over.
        description: Two or three words that may follow "stopped while", such as `"embedding teacher"`.
        total: Number of items.
        unit: What an item is, in the plural, such as `"batches"`.
        size: For how many an item counts, as a batch for its images.
    """
    description = plain(description)
    started = time.monotonic()
    last_line = started - _LINE_EVERY
    bar, task = progress_bar(), None
    try:
        done = 0
        for item in items:
            yield item
            done += size(item)
            stop_if_requested(description)
            now = time.monotonic()
            if now - started < 2:
                continue
            rate = f"{done / (now - started):,.0f} {unit}/s"
            if task is None:
                bar.start()
                task = bar.add_task(description, total=total, rate=rate)
            bar.update(task, completed=done, rate=rate)
            if not console.is_terminal and now - last_line > _LINE_EVERY:
                last_line = now
                left = duration((total - done) * (now - started) / done) if done else "unknown"
                print(f"  {description}  {done:,}/{total:,}  {rate}  eta {left}", file=sys.stdout, flush=True)
    finally:
        if task is not None:
            bar.stop()


@contextlib.contextmanager
def counting(description: str, *, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number done so far, where nobody knows the total; shows and stops as `track`.

    Args:
        description: Two or three words, such as `"indexing train"`.
        unit: What is counted, in the plural, such as `"images"`.
    """
    description = plain(description)
    started = time.monotonic()
    last_line = started - _LINE_EVERY
    spinner = console.status("")

    def show(done: int) -> None:
        nonlocal last_line
        stop_if_requested(description)
        now = time.monotonic()
        if now - started < 2:
            return
        line = f"  {description}  {done:,} {unit}  {done / (now - started):,.0f} {unit}/s"
        if console.is_terminal:
            spinner.update(Text(line))
            spinner.start()
        elif now - last_line > _LINE_EVERY:
            last_line = now
            print(line, file=sys.stdout, flush=True)

    try:
        yield show
    finally:
        spinner.stop()


def duration(seconds: float) -> str:
    """`"1 d 3 h"`, `"2 h 5 min"`, `"3 min 10 s"` or `"42 s"`."""
    whole = round(seconds)
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {smaller_unit}"
    return f"{whole} s"


class Log:
    """Lines for people: on the console, and in the run's `log.txt` when there is one; a silent one says nothing."""

    def __init__(self, path: Path | None = None, *, is_silent: bool = False) -> None:
        self.path, self.is_silent = path, is_silent
        self._once: set[str] = set()

    def say_once(self, text: str) -> None:
        """`say`, unless the same was said so before."""
        if text not in self._once:
            self._once.add(text)
            self.say(text)

    def say(self, text: str) -> None:
        """Print one line or several."""
        if self.is_silent:
            return
        text = plain(text)
        console.print(text)
        if self.path is not None:
            with storage_errors(self.path):
                self._write(self.path, text)

    @contextlib.contextmanager
    def last_words(self) -> Iterator[None]:
        """Within the block, what ends it before its time is written into the file; the command says it on the screen.

        A disk that is full already keeps no reason, and hides none.
        """
        try:
            yield
        except Exception as error:
            if self.path is not None and not self.is_silent:
                reason = str(error) if isinstance(error, AttarError) else first_line(error)
                with contextlib.suppress(OSError):
                    self._write(self.path, plain(f"{type(error).__name__}: {reason}"))
            raise

    @staticmethod
    def _write(path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
