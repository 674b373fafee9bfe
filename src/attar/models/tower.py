"""What a model of another library must say for itself to stand behind a `Backbone`: tokens, layers, embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from attar.errors import WeightsError
from attar.types import Tokens

_SHOWN = 6  # keys named in a message before "and N more"


class Tower(nn.Module, ABC):
    """The image tower of a model of open_clip or transformers, whose forward returns `Tokens`.

    All methods take normalised pixels (B, 3, H, W).

    Attributes:
        depth: Number of blocks, or stages of a conv net.
        patch_size: Pixels per token side.
    """

    depth: int
    patch_size: int

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""

    @abstractmethod
    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after blocks `layers`, which are sorted and lie in 0 to depth - 1."""

    @property
    def patch_embed(self) -> nn.Module | None:
        """The module that embeds each patch from its own pixels alone; None where patches cannot be hidden."""
        return None

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, E): the library's own image embedding; the class token (or pooling) where it has no projection."""
        return self.forward(pixels).cls


def misfit(
    path: str, *, missing: Iterable[str], left_over: Iterable[str] = (), misshapen: Iterable[str] = ()
) -> WeightsError:
    """The error for weights that do not fit a tower, naming keys as the library writes them."""
    lines = [f"weights in {path} do not fit the model."]
    for what, keys in (("not in the file", missing), ("not in the model", left_over), ("other shapes", misshapen)):
        if names := sorted(keys):
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  {what}: {', '.join(names[:_SHOWN])}{more}")
    lines.append("  They are of another architecture or size, or cut short. Check the name of the model.")
    return WeightsError("\n".join(lines))


def described(tensor: Tensor) -> str:
    """Shape, and whether it holds whole numbers: a quantised file must not be copied into floats unnoticed."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of ' + str(tensor.dtype)}"
