"""Weight files of every kind, read safely: tensors come out, no code runs."""

from __future__ import annotations

import argparse
import textwrap
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from attar.errors import WeightsError

StateDict = dict[str, Tensor]

_WRAPPERS = ("model", "state_dict", "teacher", "student")


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
        # mapped, so that an optimizer's state beside the weights is not read
        return torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


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
                f" {some(map(str, loaded)) or 'nothing'}. Expected tensors, or one of {', '.join(_WRAPPERS)}."
            )
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weight file {path} holds a {type(loaded).__name__}, not a dictionary of tensors.")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"weight file {path} holds {some(others)} among its tensors, which are none."
            " Save the state dict alone, so that each entry is accounted for."
        )
    return {str(key): value for key, value in loaded.items()}


def not_fetched(what: str, error: Exception, *, instead: str) -> WeightsError:
    """The error for files that did not arrive from the model hub, in a line, with what to give `instead`."""
    reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...")
    return WeightsError(
        f"{what} could not be fetched from the model hub ({reason.rstrip('.')}). Without a network, give {instead}."
    )


def some(names: Iterable[str], *, separator: str = ", ", shown: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(names[:shown]) + more
