"""Weight files: read safely, recognise the layout, account for every key, or say which do not fit."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attar.errors import WeightsError
from attar.models.positions import PosEmbed, resample_positions

StateDict = dict[str, Tensor]
_WRAPPERS = ("model", "state_dict", "teacher", "student")
_SHOWN = 6  # keys named in a message before "and N more"


@dataclass
class Converted:
    """A state dict in timm's names, and what was left out on the way with the reason."""

    layout: str
    state: StateDict
    explained: dict[str, str] = field(default_factory=dict)


def read_state_dict(path: Path) -> StateDict:
    """Read tensors from a safetensors file or a torch checkpoint, without running any code in it.

    A checkpoint that holds one state dict under `model`, `state_dict`, `teacher` or `student` is unwrapped.

    Raises:
        WeightsError: If the file is missing, damaged, holds other objects than tensors, or no tensors at all.
    """
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist. Give random, pretrained or the path of a file.")
    if path.stat().st_size == 0:
        raise WeightsError(f"weight file {path} is empty. Copy or download it again.")
    try:
        loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise many kinds, from struct.error to SafetensorError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            f"weight file {path} cannot be read as plain tensors ({reason.rstrip('.')}). It is damaged or cut short,"
            " or it holds code, which attar never runs: convert it to safetensors where you trust it."
        ) from None
    return _unwrap(loaded, path)


def _unwrap(loaded: object, path: Path) -> StateDict:
    while isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        inner = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if len(inner) != 1:
            raise WeightsError(
                f"weight file {path} holds {len(inner) or 'no'} state dicts: its top level has"
                f" {_some(map(str, loaded)) or 'nothing'}. Expected tensors, or one of {', '.join(_WRAPPERS)}."
            )
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weight file {path} holds a {type(loaded).__name__}, not a dictionary of tensors.")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"weight file {path} holds {_some(others)} among its tensors, which are none."
            " Save the state dict alone, so that each entry is accounted for."
        )
    return {str(key): value for key, value in loaded.items()}


def load_weights(model: nn.Module, path: Path, *, pos_embed: PosEmbed = "official", dinov2: bool = False) -> Converted:
    """Load a file into a timm model, strictly: each key of the file is used or explained, none of the model's is left.

    Args:
        model: A timm model whose input size is already the wanted one.
        path: A file in timm's names or in the official DINOv2 layout (with or without registers).
        pos_embed: How DINOv2 position tables of another input size are resampled.
        dinov2: The file holds DINOv2 weights even if its keys are timm's.

    Raises:
        WeightsError: With the keys that are missing, left over or of another shape, and a guess at why.
    """
    state = read_state_dict(path)
    is_foreign = _is_dinov2(state) and "mask_token" not in model.state_dict()
    converted = _from_dinov2(state) if is_foreign else Converted("timm", state)
    _drop_classifier(converted, model)
    how: PosEmbed = pos_embed if dinov2 or converted.layout.startswith("dinov2") else "timm"
    _fit_positions(converted, model, how)
    _check_keys(converted, model, path)
    model.load_state_dict(converted.state, strict=True)
    return converted


def _is_dinov2(state: StateDict) -> bool:
    """Official DINOv2: a mask token beside LayerScale (MAE, iBOT and SynCLR files have the one and not the other)."""
    return "mask_token" in state and any(key.endswith(".ls1.gamma") for key in state)


def _from_dinov2(state: StateDict) -> Converted:
    """Official DINOv2 names (facebookresearch/dinov2, hub files) in timm's names."""
    result: StateDict = {}
    has_registers = "register_tokens" in state
    for key, value in state.items():
        name = re.sub(r"^(blocks\.\d+\.mlp)\.w12\.", r"\1.fc1.", key)
        name = re.sub(r"^(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2.", name)
        result[{"register_tokens": "reg_token"}.get(name, name)] = value
    del result["mask_token"]
    explained = {"mask_token": "used only while DINOv2 itself was trained"}
    cls_token, table = result.get("cls_token"), result.get("pos_embed")
    if has_registers and cls_token is not None and table is not None and table.ndim == 3:
        # timm adds positions to patches only; the class token's own entry is folded into the token
        result["cls_token"] = cls_token.float() + table[:, :1].float()
        result["pos_embed"] = table[:, 1:]
    return Converted("dinov2+registers" if has_registers else "dinov2", result, explained)


def _drop_classifier(converted: Converted, model: nn.Module) -> None:
    """Leave out a classifier that the headless backbone has no place for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = config.get("classifier") or ()
    wanted = model.state_dict()
    for name in (names,) if isinstance(names, str) else tuple(names):
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in converted.state and key not in wanted:
                del converted.state[key]
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


def _check_keys(converted: Converted, model: nn.Module, path: Path) -> None:
    wanted, given = model.state_dict(), converted.state
    missing = [key for key in wanted if key not in given]
    left_over = [key for key in given if key not in wanted]
    misshapen = [
        f"{key} is {_described(given[key])}, the model has {_described(wanted[key])}"
        for key in wanted
        if key in given and _described(given[key]) != _described(wanted[key])
    ]
    if not (missing or left_over or misshapen):
        return
    lines = [f"weight file {path} does not fit the model (layout {converted.layout}, {len(given)} keys)."]
    if missing:
        lines.append(f"  not in the file: {_some(missing)}")
    if left_over:
        lines.append(f"  not in the model: {_some(left_over)}")
    if misshapen:
        lines.append(f"  other shapes: {_some(misshapen, separator='; ')}")
    lines.append(f"  {_guess(missing, left_over, misshapen)}")
    raise WeightsError("\n".join(lines))


def _described(tensor: Tensor) -> str:
    """Shape, and whether it holds whole numbers: a quantised file must not be copied into floats unnoticed."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of ' + str(tensor.dtype)}"


def _guess(missing: list[str], left_over: list[str], misshapen: list[str]) -> str:
    """The most likely reason, in one sentence."""
    for want in missing[:_SHOWN]:
        for prefix in {key.removesuffix(want) for key in left_over if key.endswith("." + want)}:
            if all(key.startswith(prefix) for key in left_over):
                return f"Every key starts with '{prefix}': strip that prefix and save the file again."
    pairs = [(key, difflib.get_close_matches(key, missing, n=1, cutoff=0.8)) for key in left_over[:20]]
    renamed = [f"'{key}' may be '{close[0]}'" for key, close in pairs if close]
    if renamed:
        return f"Renamed keys: {', '.join(renamed[:_SHOWN])}."
    if misshapen and not missing and not left_over:
        return "The names agree and the shapes do not: the file is of another size, patch size or input size."
    return "The file is of another architecture, or cut short. Check the name after --teacher or --student."


def _some(items: object, *, separator: str = ", ") -> str:
    names = [str(item) for item in items]  # type: ignore[attr-defined]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
