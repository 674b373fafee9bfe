"""Layouts of weight files: what they are, and how a file in one becomes a state dict in timm's names.

A layout is a table from timm's names to the file's, so that every message speaks the file's language: a tensor that the
model wants and the file lacks is called by the name it should have there. A file's key that no line of the table took
must be covered by `unused`, with its reason; nothing is ever dropped for any other reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from attar.models.files import StateDict, wrapper_of
from attar.types import Statistics


@dataclass(frozen=True)
class Take:
    """One kind of timm's tensors and the keys of the file it is made of.

    Attributes:
        name: Pattern of timm's key.
        sources: The file's keys without the layout's prefix; `\\1` is the first group of `name`.
        make: From the sources' tensors, in order, to timm's.
        when: Pattern of a key; the line holds for files that have one such.
    """

    name: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor
    when: str = ""


@dataclass(frozen=True)
class Unused:
    """Keys of the file (pattern of the whole key) that a backbone has no use for, and why.

    Attributes:
        key: Pattern of the key, without DataParallel's `module.`.
        reason: Told to the user.
        holds: A tensor that does not satisfy it is not covered.
        unless: Pattern of timm's names; a model that has one such has a use for the key.
    """

    key: str
    reason: str
    holds: Callable[[Tensor], bool] = lambda tensor: True
    unless: str = ""


@dataclass(frozen=True)
class Layout:
    """One family of weight files.

    Attributes:
        name: Written into the provenance.
        marks: Patterns of keys, each of which the family's files have (after the prefix).
        prefixes: What may stand before the keys of the image encoder, as documented; DataParallel's `module.` may
            stand before it.
        proof: What else tells a file of this family from others with the same keys.
        takes: The table; a name that no line matches is the same in the file.
        unused: What the file holds besides.
        buffers: Buffers outside timm's state dict that the file fills.
        licence: Of the family's official weights, None where it differs from file to file.
        architecture: Part of timm's name of the family's own architectures; in another shape the same layout is
            somebody's own training, and no licence is claimed.
        statistics: Normalisation of the images, None for the architecture's own.
        statistics_vary: Some of the family's files have others, which a tag in the reference (`.laion2b`) tells.
        activation: timm's name of the activation that the weights were trained with, where the file cannot say it.
        has_dinov2_positions: Position tables are resampled as DINOv2's code does.
        heads: Number of heads at each width that the family has: no tensor's shape tells it.
    """

    name: str
    marks: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    proof: Callable[[Mapping[str, Tensor], str], bool] = lambda state, prefix: True
    takes: tuple[Take, ...] = ()
    unused: tuple[Unused, ...] = ()
    buffers: tuple[str, ...] = ()
    licence: str | None = None
    architecture: str = ""
    statistics: Statistics | None = None
    statistics_vary: bool = False
    activation: str | None = None
    has_dinov2_positions: bool = False
    heads: Mapping[int, int] = field(default_factory=dict)

    def prefix_in(self, state: Mapping[str, Tensor]) -> str | None:
        """The prefix with which the file is one of this family, or None."""
        wrapper = wrapper_of(state)
        for prefix in (wrapper + prefix for prefix in self.prefixes):
            keys = [key[len(prefix) :] for key in state if key.startswith(prefix)]
            if all(any(re.match(mark, key) for key in keys) for mark in self.marks) and self.proof(state, prefix):
                return prefix
        return None


@dataclass
class Converted:
    """A state dict in timm's names, what was left out on the way with the reason, and what did not work out.

    Attributes:
        layout: Name of the layout.
        state: timm's names.
        explained: Keys of the file that are not used, with the reason.
        sources: Of each name in `state`, the keys of the file it was made of.
        missing: Keys that the file should have.
        left_over: Keys of the file that are neither used nor explained.
        misfits: Sentences about tensors that do not go together.
        licence: Of the weights, where the family's is known.
        statistics: Normalisation of the images that the weights were trained on, where the family's is known.
        statistics_vary: As in the layout.
    """

    layout: str
    state: StateDict
    explained: dict[str, str] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    licence: str | None = None
    statistics: Statistics | None = None
    statistics_vary: bool = False


def convert(state: Mapping[str, Tensor], wanted: Collection[str], layout: Layout, prefix: str) -> Converted:
    """What the model wants, made of what the file has; shapes are not compared here.

    Args:
        state: The file's tensors, under the file's keys.
        wanted: Names of the model's tensors.
        layout: The file's layout.
        prefix: What stands before its keys.
    """
    result = Converted(
        layout.name,
        {},
        licence=layout.licence,
        statistics=layout.statistics,
        statistics_vary=layout.statistics_vary,
    )
    table = [take for take in layout.takes if _holds(take, state, prefix)]
    for name in wanted:
        take, sources = _where(name, table, prefix)
        result.sources[name] = sources
        absent = [key for key in sources if key not in state]
        result.missing += [key for key in absent if key not in result.missing]
        if absent:
            continue
        try:
            result.state[name] = take.make(*(state[key] for key in sources))
        except (RuntimeError, IndexError, ValueError) as error:  # torch's words for shapes that do not go together
            shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in sources)
            result.misfits.append(f"{shapes} ({str(error).splitlines()[0]})")
    used = {key for sources in result.sources.values() for key in sources}
    unused = [u for u in layout.unused if not u.unless or not any(re.match(u.unless, name) for name in wanted)]
    wrapper = wrapper_of(state)
    for key in (key for key in state if key not in used):
        bare = key.removeprefix(wrapper)
        reason = next((u.reason for u in unused if re.fullmatch(u.key, bare) and u.holds(state[key])), None)
        if reason is None:
            result.left_over.append(key)
        else:
            result.explained[key] = reason
    return result


def _holds(take: Take, state: Mapping[str, Tensor], prefix: str) -> bool:
    return not take.when or any(re.match(re.escape(prefix) + take.when, key) for key in state)


def _where(name: str, table: list[Take], prefix: str) -> tuple[Take, tuple[str, ...]]:
    """The line of the table for one of timm's names, and the file's keys that it asks for."""
    for take in table:
        if match := re.fullmatch(take.name, name):
            return take, tuple(prefix + match.expand(source) for source in take.sources)
    return Take(name, (name,)), (prefix + name,)
