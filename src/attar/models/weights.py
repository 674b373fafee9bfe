"""Weight files: read safely, recognise the layout, account for every key, or say which do not fit."""

from __future__ import annotations

import argparse
import difflib
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attar.errors import WeightsError
from attar.models.layouts import Converted, Layout, StateDict, activation_name, convert, recognise
from attar.models.positions import PosEmbed, resample_positions

__all__ = ["Converted", "StateDict", "load_weights", "read_state_dict"]

_WRAPPERS = ("model", "state_dict", "teacher", "student")
_SHOWN = 6  # keys named in a message before "and N more"


def read_state_dict(path: Path, *, trust_torchscript: bool = False) -> StateDict:
    """Read tensors from a safetensors file, a torch checkpoint or a NumPy archive, without running any code in it.

    A checkpoint that holds one state dict under `model`, `state_dict`, `teacher` or `student` is unwrapped.

    Args:
        path: The file; `.safetensors` and `.npz` are told by their names.
        trust_torchscript: Read a TorchScript archive as well. Loading one can run code that is in it.

    Raises:
        WeightsError: If the file is missing, damaged, holds other objects than tensors, or no tensors at all; or is a
            TorchScript archive that is not trusted.
    """
    if not path.is_file():
        raise WeightsError(f"weight file {path} does not exist. Give random, pretrained or the path of a file.")
    if path.stat().st_size == 0:
        raise WeightsError(f"weight file {path} is empty. Copy or download it again.")
    is_torchscript = _is_torchscript(path)
    if is_torchscript and not trust_torchscript:
        raise WeightsError(
            f"weight file {path} is a TorchScript archive, and loading one can run code that is in it."
            " Where you trust its origin, as OpenAI's own CLIP, add --trust-torchscript (trust_torchscript=True)."
        )
    try:
        loaded = _load_torchscript(path) if is_torchscript else _load_plain(path)
    except Exception as error:  # damaged files raise many kinds, from struct.error to SafetensorError
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            f"weight file {path} cannot be read as plain tensors ({reason.rstrip('.')}). It is damaged or cut short,"
            " or it holds code, which attar never runs: convert it to safetensors where you trust it."
        ) from None
    return _unwrap(loaded, path)


def _load_plain(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        return _load_npz(path)
    # the arguments of the training script, which many checkpoints keep, are a bare container
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, "cpu", weights_only=True)


def _load_npz(path: Path) -> StateDict:
    """A Flax checkpoint: bfloat16 is told by its width, and blocks that were trained as one array are taken apart."""
    state: StateDict = {}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for key, value in archive.items():
            is_bfloat16 = value.dtype.kind == "V" and value.dtype.itemsize == 2
            tensor = (
                torch.from_numpy(value.view(np.int16)).view(torch.bfloat16) if is_bfloat16 else torch.from_numpy(value)
            )
            if "/encoderblock/" in key:
                state |= {key.replace("/encoderblock/", f"/encoderblock_{i}/"): row for i, row in enumerate(tensor)}
            else:
                state[key] = tensor
    return state


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:  # another kind of file, or a damaged one: reading it will tell
        return False


def _load_torchscript(path: Path) -> StateDict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to retire TorchScript; the files stay
        state: StateDict = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return state


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
        path: A file in timm's names or in one of the official layouts (`attar.models.layouts`).
        pos_embed: How DINOv2 position tables of another input size are resampled.
        dinov2: The file holds DINOv2 weights even if its keys are timm's.
        trust_torchscript: Read a TorchScript archive, which can run code.

    Raises:
        WeightsError: With the keys that are missing, left over or of another shape, and a guess at why; or if the
            weights were trained with another activation than the architecture has.
    """
    state = read_state_dict(path, trust_torchscript=trust_torchscript)
    layout, prefix = recognise(state, model.state_dict())
    buffers = _buffers_to_fill(model, layout)
    wanted = model.state_dict() | buffers
    converted = convert(state, wanted, layout, prefix)
    config = getattr(model, "pretrained_cfg", None) or {}
    if layout.architecture not in str(config.get("architecture")):
        converted.licence = None
    _drop_classifier(converted, model)
    _fit_positions(converted, model, pos_embed if dinov2 or layout.has_dinov2_positions else "timm")
    _check_keys(state, converted, wanted, path)
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
    converted.layout += f" ({found}{f' in place of {layout.activation}' if layout.activation else ''})"


def _check_keys(state: StateDict, converted: Converted, wanted: Mapping[str, Tensor], path: Path) -> None:
    missing, left_over = converted.missing, converted.left_over
    misshapen = converted.misfits + [
        _misfit(converted.sources[name], state, tensor, wanted[name])
        for name, tensor in converted.state.items()
        if _described(tensor) != _described(wanted[name])
    ]
    if not (missing or left_over or misshapen):
        return
    lines = [f"weight file {path} does not fit the model (layout {converted.layout}, {len(state)} keys)."]
    if missing:
        lines.append(f"  not in the file: {_some(missing)}")
    if left_over:
        lines.append(f"  not in the model: {_some(left_over)}")
    if misshapen:
        lines.append(f"  other shapes: {_some(misshapen, separator='; ')}")
    lines.append(f"  {_guess(missing, left_over, misshapen)}")
    raise WeightsError("\n".join(lines))


def _misfit(sources: tuple[str, ...], state: StateDict, given: Tensor, wanted: Tensor) -> str:
    names = " with ".join(sources)
    verb = "is" if _described(state[sources[0]]) == _described(given) else "gives"
    return f"{names} {verb} {_described(given)}, the model has {_described(wanted)}"


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
    if left_over and not missing and all(key.endswith(("attn.qkv.bias", "attn.qkv.bias_mask")) for key in left_over):
        return "The file has biases where the model has none: take the architecture whose name ends in _qkvb."
    if misshapen and not missing and not left_over:
        return "The names agree and the shapes do not: the file is of another size, patch size or input size."
    return "The file is of another architecture, or cut short. Check the name after --teacher or --student."


def _some(items: object, *, separator: str = ", ") -> str:
    names = [str(item) for item in items]  # type: ignore[attr-defined]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return separator.join(names[:_SHOWN]) + more
