"""Images for the transfer studies, in a folder of links and a Parquet file; both are made once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from attar.utils.io import new_file
from attar.utils.seeding import numpy_generator

CIFAR = 2000


def some_of_cifar10(data: Path, target: Path) -> Path:
    """`CIFAR` training images drawn by seed, without labels."""
    if not target.is_file():
        table = pq.read_table(data / "cifar10/train.parquet", columns=["image"])
        drawn = np.sort(numpy_generator(0, "pool").permutation(len(table))[:CIFAR])
        with new_file(target) as temporary:
            pq.write_table(table.take(drawn), temporary)
    return target


def hidden(*names: str) -> str:
    """A name that tells nothing of the image's class."""
    return hashlib.sha256("/".join(names).encode()).hexdigest()[:16]


def link(image: Path, target: Path) -> None:
    """Let `target` lead to the image."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(image.resolve())
