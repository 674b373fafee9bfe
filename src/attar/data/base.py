"""What the rest of attar asks of a place that images lie in."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """Something of a source that is passed over, as a damaged shard.

    Attributes:
        name: Its path or URL.
        reason: What is wrong.
        lost: Images that go with it: an estimate, rather too high, since nothing says how many there were.
    """

    name: str
    reason: str
    lost: int


def scaled(problems: Iterable[Problem], factor: float) -> tuple[Problem, ...]:
    """The problems of a source of which a part is taken, or all of it several times."""
    return tuple(replace(problem, lost=math.ceil(problem.lost * factor)) for problem in problems)


class Source(Protocol):
    """Images by row. Opening one reads no pixels; a source can be pickled and opened again in a worker.

    Attributes:
        fingerprint: Two sources with equal fingerprints have equal rows.
        problems: What was found damaged when it was opened, and is not among the rows.
    """

    fingerprint: str
    problems: tuple[Problem, ...]

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Encoded bytes, or pixels (H, W, 3) where the source makes them.

        Raises:
            DecodeError: If the row cannot be read any more.
        """
        ...

    def name(self, row: int) -> str:
        """What to call the row in messages: its path. What `read` raises begins with it."""
        ...

    def uri(self, row: int) -> str:
        """Where the row's image lies, for other tools: an absolute path or a URL, and the place within it.

        An image file is its own path; `x.tar#member`, `x.parquet#row=17`, `x.bin#record=17` and `playground:0#17` name
        what lies within. Without credentials, and printable: `read` opens the row, not this.
        """
        ...

    def labels(self) -> tuple[Labels, list[str]] | None:
        """(class index per row, class names), or None for a source without labels."""
        ...


def lost_images(source: Source) -> int:
    """About how many images damaged shards of a source have lost."""
    return sum(problem.lost for problem in source.problems)
