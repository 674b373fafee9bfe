"""From a weight file to a model, strictly: each key is used or explained, or the error says which do not fit."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from timm.layers.activations import GELU, GELUTanh, QuickGELU
from torch import Tensor, nn

from attar.errors import WeightsError
from attar.models.files import StateDict, noted, read_checkpoint, some
from attar.models.layouts import Converted, Layout, convert
from attar.models.official import recognise
from attar.models.positions import PosEmbed, resample_positions


def load_weights(
    model: nn.Module,
    path: Path,
    *,
    pos_embed: PosEmbed = "official",
    dinov2: bool = False,
    trust_torchscript: bool = False,
) -> Converted:
    """Load a file into a timm model, strictly: each key of the file is used or explained, none of the model's is left.

    Args:
        model: A timm model whose input size is already the wanted one.
        path: A file in timm's names or in one of the official layouts (`attar.models.official`).
        pos_embed: How DINOv2 position tables of another input size are resampled.
        dinov2: The file holds DINOv2 weights even if its keys are timm's.
        trust_torchscript: Read a TorchScript archive, which can run code.

    Raises:
        WeightsError: With the keys that are missing, left over or of another shape, and a guess at why; or if the
            weights were trained with another activation or number of heads than the architecture has.
    """
    state, part = read_checkpoint(path, trust_torchscript=trust_torchscript)
    layout, prefix = recognise(state, model.state_dict())
    buffers = _buffers_to_fill(model, layout)
    wanted = model.state_dict() | buffers
    converted = convert(state, wanted, layout, prefix)
    converted.layout = noted(layout.name, part)
    config = getattr(model, "pretrained_cfg", None) or {}
    if layout.architecture not in str(config.get("architecture")):
        converted.licence = None
    _drop_classifier(converted, model)
    _fit_positions(converted, model, pos_embed if dinov2 or layout.has_dinov2_positions else "timm")
    check_keys(converted, wanted, state=state, path=path)
    _check_heads(layout, model, path)
    _settle_activation(converted, layout, model, path)
    for name, buffer in buffers.items():
        buffer.copy_(converted.state.pop(name))
    model.load_state_dict(converted.state, strict=True)
    return converted


def _buffers_to_fill(model: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Buffers outside the state dict that the file fills; none once others were computed from them (fixed size)."""
    buffers = dict(model.named_buffers())
    if "rope.pos_embed_cached" in buffers:
        return {}
    return {name: buffers[name] for name in layout.buffers if name in buffers}


def _drop_classifier(converted: Converted, model: nn.Module) -> None:
    """Leave out a classifier that the headless backbone has no place for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    for name in (names,) if isinstance(names, str) else tuple(names):
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in converted.left_over:
                converted.left_over.remove(key)
                converted.explained[key] = "classifier; a backbone has none"


def _fit_positions(converted: Converted, model: nn.Module, how: PosEmbed) -> None:
    """Bring a table of positions to the model's grid; one that does not fit is left for the key check to name."""
    table, wanted = converted.state.get("pos_embed"), getattr(model, "pos_embed", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if table is None or wanted is None or grid is None or table.ndim != 3 or table.shape == wanted.shape:
        return
    num_prefix = 0 if getattr(model, "no_embed_class", False) else int(getattr(model, "num_prefix_tokens", 0))
    count = table.shape[1] - num_prefix
    if table.shape[-1] != wanted.shape[-1] or count < 1 or math.isqrt(count) ** 2 != count:
        return
    has_registers = getattr(model, "reg_token", None) is not None
    converted.state["pos_embed"] = resample_positions(
        table, grid, num_prefix=num_prefix, how=how, has_registers=has_registers
    )


def _check_heads(layout: Layout, model: nn.Module, path: Path) -> None:
    """Refuse another number of heads than the family has at this width: its weights fit any."""
    attention = next((module for name, module in model.named_modules() if name == "blocks.0.attn"), None)
    width, given = getattr(model, "embed_dim", 0), getattr(attention, "num_heads", None)
    wanted = layout.heads.get(width, given)
    if given not in (wanted, None):
        raise WeightsError(
            f"weight file {path} is of layout {layout.name}, whose models of width {width} have {wanted} heads, and the"
            f" architecture has {given}: its tokens would be wrong. Write num_heads={wanted} into the reference."
        )


def _settle_activation(converted: Converted, layout: Layout, model: nn.Module, path: Path) -> None:
    """No file says which activation it was trained with: refuse one that is surely wrong, write down the rest."""
    found = next((name for module in model.modules() if (name := activation_name(module))), "no GELU")
    if layout.activation in (None, found) and layout.name != "open_clip":
        return
    if layout.activation == "quick_gelu":
        raise WeightsError(
            f"weight file {path} is of layout {layout.name}, trained with QuickGELU, and the architecture has"
            f" {found}: its tokens would be wrong. Take the architecture with QuickGELU"
            " (vit_large_patch14_clip_quickgelu_224), or add act_layer=quick_gelu to the reference."
        )
    converted.layout = noted(
        converted.layout, f"{found}{f' in place of {layout.activation}' if layout.activation else ''}"
    )


def activation_name(module: nn.Module) -> str | None:
    """timm's name of a GELU, None for modules that are none."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return {GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu"}.get(type(module))


def check_keys(converted: Converted, wanted: Mapping[str, Tensor], *, state: StateDict, path: Path) -> None:
    """Refuse a file of which a key is missing, left over or of another shape.

    Args:
        converted: What was made of the file.
        wanted: The model's tensors.
        state: The file's tensors, under its own keys.
        path: The file.

    Raises:
        WeightsError: With these keys, as the file names them.
    """
    misshapen = converted.misfits + [
        _other_shape(converted.sources[name], state, tensor, wanted[name])
        for name, tensor in converted.state.items()
        if described(tensor) != described(wanted[name])
    ]
    if converted.missing or converted.left_over or misshapen:
        raise misfit(
            f"{path} (layout {converted.layout}, {len(state)} keys)",
            missing=converted.missing,
            left_over=converted.left_over,
            misshapen=misshapen,
        )


def misfit(
    where: str, *, missing: Iterable[str] = (), left_over: Iterable[str] = (), misshapen: Iterable[str] = ()
) -> WeightsError:
    """The error for weights that do not fit a model: which keys of the file, and a guess at why."""
    missing, left_over, misshapen = list(missing), list(left_over), list(misshapen)
    lines = [f"weights in {where} do not fit the model."]
    if missing:
        lines.append(f"  not in the file: {some(missing)}")
    if left_over:
        lines.append(f"  not in the model: {some(left_over)}")
    if misshapen:
        lines.append(f"  other shapes: {some(misshapen, separator='; ')}")
    lines.append(f"  {_guess(missing, left_over, misshapen)}")
    return WeightsError("\n".join(lines))


def described(tensor: Tensor) -> str:
    """Shape, and whether it holds whole numbers: a quantised file must not be copied into floats unnoticed."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of ' + str(tensor.dtype)}"


def _other_shape(sources: tuple[str, ...], state: StateDict, given: Tensor, wanted: Tensor) -> str:
    names = " with ".join(sources)
    verb = "is" if described(state[sources[0]]) == described(given) else "gives"
    return f"{names} {verb} {described(given)}, the model has {described(wanted)}"


_LIBRARIES = (  # what each calls its blocks, and how its models are referred to
    ("timm", "timm:NAME", r"blocks\.\d+\."),
    ("transformers", "hf:DIR", r"(.+\.)?(encoder\.layers?|layer)\.\d+\."),
    ("open_clip", "open_clip:NAME", r"(visual\.)?transformer\.resblocks\.\d+\."),
)


def _library(keys: list[str]) -> tuple[str, str] | None:
    """The library that names tensors so, and the form of a reference to its models."""
    return next(((name, form) for name, form, block in _LIBRARIES if any(re.match(block, key) for key in keys)), None)


def _guess(missing: list[str], left_over: list[str], misshapen: list[str]) -> str:
    """The most likely reason, in one sentence."""
    for want in missing[:6]:
        for prefix in {key.removesuffix(want) for key in left_over if key.endswith("." + want)}:
            if all(key.startswith(prefix) for key in left_over):
                return f"Every key starts with '{prefix}': strip that prefix and save the file again."
    theirs, ours = _library(left_over), _library(missing)
    if theirs and ours and theirs != ours:
        return (
            f"The file names its tensors as {theirs[0]} does, the model as {ours[0]} does: refer to the model as"
            f" {theirs[1]}."
        )
    pairs = [(key, difflib.get_close_matches(key, missing, n=1, cutoff=0.8)) for key in left_over[:20]]
    renamed = [f"'{key}' may be '{close[0]}'" for key, close in pairs if close]
    if renamed:
        return f"Renamed keys: {some(renamed)}."
    if left_over and not missing and all(key.endswith(("attn.qkv.bias", "attn.qkv.bias_mask")) for key in left_over):
        return "The file has biases where the model has none: take the architecture whose name ends in _qkvb."
    if misshapen and not missing and not left_over:
        return "The names agree and the shapes do not: the file is of another size, patch size or input size."
    return "They are of another architecture, or cut short. Check the name after --teacher or --student."
