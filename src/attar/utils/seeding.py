"""Randomness as a pure function: every view, mask and shuffle is derived from `(seed, keys…)` here.

attar never touches the global generators of Python, numpy or torch. A stream is named by its keys,
so the same sample gets the same view on any worker, on any rank, before and after a resume.
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Key = int | str


def derive(seed: int, *keys: Key) -> int:
    """A 64-bit number that depends on `seed` and on every key, in order; a numpy integer counts as its value.

    Example:
        >>> derive(0, "view", 3, 1) == derive(0, "view", 3, 1)
        True
        >>> derive(0, "view", 3, 1) == derive(0, "view", 31)
        False
    """
    text = "\x1f".join(f"str:{k}" if isinstance(k, str) else f"int:{operator.index(k)}" for k in (seed, *keys))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def numpy_generator(seed: int, *keys: Key) -> np.random.Generator:
    """A numpy generator for the stream named by `keys`."""
    key: Any = _Key(derive(seed, *keys))  # numpy's stubs know only one kind of ISeedSequence
    return np.random.Generator(np.random.Philox(key))


class _Key(ISeedSequence):
    """Philox's key as it is. `Philox(key=...)` is the same stream, but asks the system for randomness that it drops."""

    def __init__(self, key: int) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        """The two words that Philox asks for."""
        return np.array([self.key, 0], dtype=np.uint64)


def legacy_numpy_generator(seed: int) -> np.random.RandomState:
    """NumPy's old generator, as after `np.random.seed(seed)`: only for splits that were published by their seed."""
    return np.random.RandomState(seed)


def torch_generator(seed: int, *keys: Key, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for the stream named by `keys`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *keys) & (2**63 - 1))


@contextlib.contextmanager
def seeded_torch(seed: int, *keys: Key, device: str | torch.device = "cpu") -> Iterator[None]:
    """Lend the global generators of the CPU and of `device` to code that can use no other (initialisers, dropout).

    Their state before the block is restored afterwards, so nothing outside can tell.
    """
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        number = derive(seed, *keys) & (2**63 - 1)
        torch.default_generator.manual_seed(number)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
