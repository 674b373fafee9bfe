"""Weight selection: a student starts from a part of its teacher's weights (Xu et al., ICLR 2024, arXiv 2311.18823).

Layers are selected first, then elements, evenly along each dimension of a tensor. Equal widths give equal indices, so
a channel of the residual stream is the same one in every layer, and the parts of a fused qkv stay apart. As in the
paper nothing is rescaled, and heads are not kept whole: a student's head takes its elements from several of the
teacher's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from timm.layers import resample_patch_embed
from torch import Tensor

from attar.errors import WeightsError
from attar.models.backbone import Backbone
from attar.models.files import some
from attar.models.layouts import convert
from attar.models.official import recognise
from attar.models.positions import resample_positions
from attar.models.tower import Tower

LayerChoice = Literal["first", "uniform"]
_BLOCK = re.compile(r"((?:.+\.)?(?:res)?blocks)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Selection:
    """A student's state dict, selected from a teacher's.

    Attributes:
        state: Every tensor of the student.
        random: Those that kept their initialisation, with the reason.
    """

    state: dict[str, Tensor]
    random: dict[str, str]


def start_from_teacher(student: Backbone, teacher: Backbone, *, layers: LayerChoice = "first") -> Selection:
    """Give the student the teacher's weights as `select_weights` does, its statistics, and the provenance.

    The student is timm's; the teacher too, or an image tower of open_clip, whose tensors go by timm's names. Position
    tables and patch kernels of other sizes are resampled first, as timm does.

    Raises:
        WeightsError: If the two are not of one family, or the teacher is the smaller one.
    """
    wanted = student.model.state_dict()
    try:
        selection = select_weights(_resampled(teacher, student, wanted), wanted, layers=layers)
    except WeightsError as error:
        raise WeightsError(f"{student.source.name} cannot start from {teacher.source.name}: {error}") from None
    student.model.load_state_dict(selection.state)
    student.normalise_with(teacher.preprocess)
    words = f"selected from the teacher ({layers} layers)"
    if names := selection.random:
        words += f", random: {some(names, shown=3)}"
    student.source = replace(student.source, weights=words, licence=teacher.source.licence)
    return selection


def select_weights(
    teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], *, layers: LayerChoice = "first"
) -> Selection:
    """Select a student's weights from those of a teacher of the same family.

    Args:
        teacher: State dict in timm's names, blocks under `blocks.N.` (ViT) or `stages.M.blocks.N.` (ConvNeXt), or in
            open_clip's, under `transformer.resblocks.N.`.
        student: State dict of the initialised student; its values stay where the teacher has no counterpart.
        layers: Block j of a student of L_s blocks starts from block j of the teacher's L_t (`first`, the paper's
            choice), or from block j * L_t // L_s (`uniform`). In ConvNeXt this holds within each stage.

    Raises:
        WeightsError: If no tensor of any block can be selected.

    Example:
        >>> teacher = {"blocks.0.norm1.weight": torch.arange(6.0), "blocks.1.norm1.weight": torch.ones(6)}
        >>> select_weights(teacher, {"blocks.0.norm1.weight": torch.zeros(4)}).state["blocks.0.norm1.weight"]
        tensor([0., 1., 3., 4.])
    """
    state, random = dict(student), {}
    sources = _sources(teacher, student, layers)
    for name, start in student.items():
        if obstacle := _obstacle(sources[name], teacher, name, student):
            random[name] = obstacle
        else:
            state[name] = _select_elements(teacher[sources[name]], start)
    blocks = [name for name in student if _BLOCK.match(name)]
    if all(name in random for name in blocks):
        reason = f"{blocks[0]}: {random[blocks[0]]}" if blocks else "it has no layers called blocks"
        raise WeightsError(
            f"no layer of the student can be selected ({reason}). Weights are selected between timm's models of one"
            " family (ViT, ConvNeXt), from a larger teacher to a smaller student. Try --student-weights random."
        )
    return Selection(state, random)


def _sources(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], layers: LayerChoice) -> dict[str, str]:
    """The teacher's tensor that each of the student's starts from, were it there."""
    depths, teacher_depths = _depths(student), _depths(teacher)
    sources = {}
    for name in student:
        sources[name] = name
        if layers == "uniform" and (match := _BLOCK.match(name)):
            stack, block, rest = match.groups()
            depth = max(teacher_depths.get(stack, 0), depths[stack])  # layers of a deeper student: one to one
            sources[name] = f"{stack}.{int(block) * depth // depths[stack]}.{rest}"
    return sources


def _depths(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of blocks in each stack (`blocks`, `stages.0.blocks` ...)."""
    found: dict[str, int] = {}
    for match in filter(None, map(_BLOCK.match, state)):
        found[match[1]] = max(found.get(match[1], 0), int(match[2]) + 1)
    return found


def _obstacle(source: str, teacher: Mapping[str, Tensor], name: str, student: Mapping[str, Tensor]) -> str | None:
    """Why a tensor cannot be selected from the teacher's, None where it can."""
    if source not in teacher:
        return f"the teacher has no {source}"
    given, wanted = teacher[source].shape, student[name].shape
    if len(given) != len(wanted):
        return f"{tuple(wanted)} has other dimensions than the teacher's {tuple(given)}"
    channels = _channel_dims(len(wanted))
    if any(given[dim] < size if dim in channels else given[dim] != size for dim, size in enumerate(wanted)):
        return f"{tuple(wanted)} is no part of the teacher's {tuple(given)}"
    if _is_gated(source, teacher) != _is_gated(name, student):
        return "one of the two MLPs is gated"
    return None


def _channel_dims(ndim: int) -> tuple[int, ...]:
    """Dimensions of which a part may be taken: channels, not tokens (1, N, D) nor taps of a kernel (D, C, h, w)."""
    return (2,) if ndim == 3 else (0, 1)


def _is_gated(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether the tensor belongs to an MLP whose first layer makes values and gates in one (SwiGLU)."""
    if not (mlp := re.match(r"(.+\.mlp\.)fc[12]\.", name)):
        return False
    first, second = state.get(f"{mlp[1]}fc1.weight"), state[f"{mlp[1]}fc2.weight"]
    return first is None or first.shape[0] != second.shape[1]


def _select_elements(given: Tensor, wanted: Tensor) -> Tensor:
    """Of T elements along a dimension the S at i * T // S. (The released code's linspace runs past the end.)"""
    for dim, size in enumerate(wanted.shape):
        given = given.index_select(dim, torch.arange(size, device=given.device) * given.shape[dim] // size)
    return given.to(wanted)


def _in_timms_names(teacher: Backbone, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's state dict; of another library's tower, what timm's model of the student's family has of it."""
    state: dict[str, Tensor] = dict(teacher.model.state_dict())
    if not isinstance(teacher.model, Tower):
        return state
    blocks = [match for match in map(_BLOCK.fullmatch, wanted) if match]
    names = [f"{match[1]}.{number}.{match[3]}" for match in blocks for number in range(teacher.depth)]
    layout, prefix = recognise(state, wanted)
    return convert(state, dict.fromkeys([*wanted, *names]), layout, prefix).state


def _resampled(teacher: Backbone, student: Backbone, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's state dict with positions on the student's grid and patch kernels of the student's size."""
    state = _in_timms_names(teacher, wanted)
    if (table := state.get("pos_embed")) is not None and table.ndim == 3:
        prefix = table.shape[1] - teacher.grid[0] * teacher.grid[1]
        state["pos_embed"] = resample_positions(table, student.grid, num_prefix=prefix, how="timm")
    kernel = "patch_embed.proj.weight"
    if kernel in state and kernel in wanted and wanted[kernel].ndim == 4:
        state[kernel] = resample_patch_embed(state[kernel], list(wanted[kernel].shape[-2:]))
    return state
