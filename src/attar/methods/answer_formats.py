"""How a teacher's answers stand on disk: as they are, or in fewer bytes with a known loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from attar.errors import ConfigError


class AnswerFormat(Protocol):
    """Turns one tensor of answers into bytes and back; a row belongs to one view and knows of no other.

    Attributes:
        suffix: Of the file that holds them.
        is_exact: Whether float32 comes back bit for bit.
    """

    @property
    def suffix(self) -> str: ...
    @property
    def is_exact(self) -> bool: ...

    def size(self, shape: Sequence[int]) -> int:
        """Bytes of one view's answer of this shape."""
        ...

    def encode(self, answers: Tensor) -> Tensor:
        """(B, *shape), any float dtype, as (B, size) uint8 on the same device."""
        ...

    def decode(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """(B, size) uint8 as (B, *shape) float32."""
        ...

    def on(self, device: torch.device) -> AnswerFormat:
        """The same, with what it holds on a device."""
        return self


@dataclass(frozen=True)
class Floats(AnswerFormat):
    """Numbers one by one, as float32 or float16; what float16 cannot hold is held at its end."""

    dtype: torch.dtype = torch.float32

    @property
    def suffix(self) -> str:
        """f32 or f16."""
        return f"f{8 * self.dtype.itemsize}"

    @property
    def is_exact(self) -> bool:
        """float32 alone."""
        return self.dtype == torch.float32

    def size(self, shape: Sequence[int]) -> int:
        """Two or four bytes a number."""
        return math.prod(shape) * self.dtype.itemsize

    def encode(self, answers: Tensor) -> Tensor:
        """Bytes of the numbers."""
        numbers = answers.float()
        if not self.is_exact:
            end = torch.finfo(self.dtype).max
            numbers = numbers.clamp(-end, end)  # NaN stays: the loss then names the step
        return _bytes(numbers.to(self.dtype))

    def decode(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """The numbers."""
        return _numbers(stored, self.dtype).float().reshape(-1, *shape)


@dataclass(frozen=True)
class Int8(AnswerFormat):
    """Whole numbers of -127 to 127 with a float32 scale for each token.

    The relative error of a token is about (largest / root mean square) / 440: 1 to 2 % for most.
    """

    suffix: str = "i8"
    is_exact: bool = False

    def size(self, shape: Sequence[int]) -> int:
        """A byte a number, and four a token."""
        return math.prod(shape) + 4 * math.prod(shape[:-1])

    def encode(self, answers: Tensor) -> Tensor:
        """Scales of all tokens, then their numbers."""
        numbers = answers.float()
        scale = numbers.abs().amax(-1, keepdim=True) / 127
        steps = (numbers / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
        return torch.cat([_bytes(scale), _bytes(steps)], dim=1)

    def decode(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """The numbers."""
        tokens = math.prod(shape[:-1])
        scale = _numbers(stored[:, : 4 * tokens], torch.float32).reshape(-1, *shape[:-1], 1)
        return stored[:, 4 * tokens :].view(torch.int8).reshape(-1, *shape) * scale


@dataclass(frozen=True, eq=False)
class Components(AnswerFormat):
    """Tokens as int8 of their strongest components; what is one vector an image, as class tokens, as float16.

    They come back in the teacher's own channels, less what lies outside of the components: heads, losses and their
    values stay comparable, for one small matrix product a view.

    Attributes:
        mean: (D,) float32.
        basis: (D, r) float32, columns of length 1 at right angles.
    """

    mean: Tensor
    basis: Tensor
    suffix: str = "pca"
    is_exact: bool = False

    def size(self, shape: Sequence[int]) -> int:
        """A byte a component, and four a token."""
        return Int8().size(self._inner(shape)) if len(shape) > 1 else _HALF.size(shape)

    def encode(self, answers: Tensor) -> Tensor:
        """Components of the tokens."""
        if answers.dim() < 3:
            return _HALF.encode(answers)
        with torch.autocast(answers.device.type, enabled=False):
            return Int8().encode((answers.float() - self.mean.to(answers.device)) @ self.basis.to(answers.device))

    def decode(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """Tokens that have these components and no others."""
        if len(shape) < 2:
            return _HALF.decode(stored, shape)
        with torch.autocast(stored.device.type, enabled=False):
            components = Int8().decode(stored, self._inner(shape))
            return components @ self.basis.T.to(stored.device) + self.mean.to(stored.device)

    def on(self, device: torch.device) -> Components:
        """The same, with the components there."""
        return replace(self, mean=self.mean.to(device), basis=self.basis.to(device))

    def _inner(self, shape: Sequence[int]) -> list[int]:
        return [*shape[:-1], self.basis.shape[1]]


EXACT = Floats()
_HALF = Floats(torch.float16)
PLAIN_FORMATS: Mapping[str, AnswerFormat] = {"float32": EXACT, "float16": _HALF, "int8": Int8()}
"""Those that need not look at any answer first."""


def strongest_components(tokens: Tensor, count: int) -> Components:
    """The principal components of tokens.

    Args:
        tokens: (m, D), a sample.
        count: r, of the D components.

    Raises:
        ConfigError: If there are not as many.
    """
    if count > tokens.shape[1]:
        raise ConfigError(
            f"cache.format is pca:{count}, and the teacher's tokens have {tokens.shape[1]} channels."
            f" Try --cache.format pca:{max(1, tokens.shape[1] // 3)}, or int8."
        )
    mean = tokens.mean(0, dtype=torch.float64)
    centred = tokens - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # weakest first
    return Components(mean.float(), vectors[:, -count:].flip(1).float().contiguous())


def _bytes(numbers: Tensor) -> Tensor:
    return numbers.flatten(1).contiguous().view(torch.uint8)


def _numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    return stored.clone(memory_format=torch.contiguous_format).view(dtype)  # a part of a row may begin anywhere
