"""Weight files of every kind, read safely: tensors come out, no code runs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import pickle
import re
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file
from torch import Tensor

from attar.errors import AttarError, WeightsError, meant_beside
from attar.utils.signals import stopped_at_once

StateDict = dict[str, Tensor]

_PATIENCE_S = 2.0  # before a download is told of

_WRAPPERS = ("model", "state_dict", "teacher", "student")
_HUB_REASONS = (  # special ones first
    (GatedRepoError, "its owner wants the terms accepted first, on its page, and a login (hf auth login)"),
    (RepositoryNotFoundError, "there is no such repository, or it is private"),
    (LocalEntryNotFoundError, "the hub does not answer, and the cache holds no copy"),
    (EntryNotFoundError, "the repository holds no such file"),
    (HfHubHTTPError, "the hub answers with an error; try again later"),
    ((ConnectionError, TimeoutError, URLError), "the hub does not answer"),
)


def read_state_dict(path: Path, *, trust_torchscript: bool = False) -> StateDict:
    """Tensors of a weight file; see `read_checkpoint`."""
    return read_checkpoint(path, trust_torchscript=trust_torchscript)[0]


def read_checkpoint(path: Path, *, trust_torchscript: bool = False) -> tuple[StateDict, str]:
    """Tensors of a safetensors file, a torch checkpoint or a NumPy archive, read without running any code in it.

    A checkpoint that holds one state dict under `model`, `state_dict`, `teacher` or `student` is unwrapped. The second
    value says so where tensors beside it were passed over: `model, not model_ema`; else it is empty.

    Args:
        path: The file; `.safetensors` and `.npz` are told by their names.
        trust_torchscript: Read a TorchScript archive as well. Loading one can run code that is in it.

    Raises:
        WeightsError: If the file is missing, damaged, holds other objects than tensors, or no tensors at all; or is a
            TorchScript archive that is not trusted.
    """
    if not path.is_file():
        raise WeightsError(
            f"weight file {path} does not exist.{meant_beside(path)} Give random, pretrained or the path of a file."
        )
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
        raise WeightsError(f"weight file {path} cannot be read: {_why_unreadable(path, error)}") from None
    return _unwrap(loaded, path)


def _why_unreadable(path: Path, error: Exception) -> str:
    """What is wrong with a file, and the remedy. Libraries advise to run what is in it, so that theirs is not told."""
    if isinstance(error, PermissionError):
        return "you may not read it. Change its permissions."
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"<"):
        return "it is a web page, which a server sent in place of the file. Download it again, from its raw address."
    if head.startswith(b"version https://git-lfs"):
        return "it is git-lfs' pointer to the file, not the file. Fetch that with git lfs pull."
    is_refused = isinstance(error, pickle.UnpicklingError) or "allow_pickle" in str(error)
    if is_refused and head.startswith((b"PK", b"\x80")):  # a zip of torch or NumPy, or a plain pickle
        name = re.search(r"GLOBAL (\S+)", str(error))
        return (
            f"{noted('it holds other things than tensors', name[1] if name else '')}, and to read them is to run code,"
            " which attar never does. Where you trust it, save its state dict alone, best as safetensors."
        )
    return f"it is damaged or cut short ({path.stat().st_size:,} bytes), or no weight file. Copy or download it again."


def _load_plain(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".npz":
        return _load_npz(path)
    # the arguments of the training script, which many checkpoints keep, are a bare container
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pickles it may not understand: the error says so
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
    except (zipfile.BadZipFile, ValueError, NotImplementedError):  # of another kind, or damaged: reading it will tell
        return False


def _load_torchscript(path: Path) -> StateDict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to retire TorchScript; the files stay
        state: StateDict = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return state


def _unwrap(loaded: object, path: Path) -> tuple[StateDict, str]:
    note = ""
    while isinstance(loaded, Mapping) and not _holds_tensors(loaded):
        inner = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
        if len(inner) != 1:
            raise WeightsError(
                f"weight file {path} holds {len(inner) or 'no'} state dicts: its top level has"
                f" {some(map(str, loaded)) or 'nothing'}. Expected tensors, or one of {', '.join(_WRAPPERS)}."
            )
        if others := [str(name) for name, part in loaded.items() if name != inner[0] and _holds_tensors(part)]:
            note = f"{inner[0]}, not {some(others)}"
        loaded = loaded[inner[0]]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"weight file {path} holds a {type(loaded).__name__}, not a dictionary of tensors.")
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        raise WeightsError(
            f"weight file {path} holds {some(others)} among its tensors, which are none."
            " Save the state dict alone, so that each entry is accounted for."
        )
    return {str(key): value for key, value in loaded.items()}, note


def _holds_tensors(part: object) -> bool:
    return isinstance(part, Mapping) and any(isinstance(value, Tensor) for value in part.values())


def wrapper_of(keys: Iterable[str]) -> str:
    """`module.` where a model was saved inside torch's DataParallel, which puts it before every key; else nothing."""
    return "module." if all(key.startswith("module.") for key in keys) else ""


def not_fetched(what: str, error: Exception, *, instead: str) -> WeightsError:
    """The error for files that did not arrive from the model hub, with what to give `instead`."""
    known = next((reason for kind, reason in _HUB_REASONS if isinstance(error, kind)), None)
    reason = known or getattr(error, "strerror", None) or type(error).__name__
    return WeightsError(f"{what} could not be fetched from the model hub: {reason}. Without it, give {instead}.")


@contextlib.contextmanager
def fetching(what: str, *, instead: str) -> Iterator[None]:
    """Around a download from the model hub: told once it takes a while, ended at once by a signal, errors in words.

    Args:
        what: Is fetched, as messages call it.
        instead: What to give where the hub cannot be reached.

    Raises:
        WeightsError: If it does not arrive.
        Interrupted: If SIGINT or SIGTERM comes.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of its attempts: the error says what came of them
    line = f"  fetching {what} from the model hub; Ctrl-C stops"
    told = threading.Timer(_PATIENCE_S, lambda: print(line, file=sys.stderr, flush=True))
    told.daemon = True
    told.start()
    try:
        with stopped_at_once(f"fetching {what}"):
            yield
    except AttarError:
        raise
    except Exception as error:  # hub and web raise many kinds; each means that it did not arrive
        raise not_fetched(what, error, instead=instead) from None
    finally:
        told.cancel()


def noted(what: str, note: str) -> str:
    """What was loaded, and a note about it in brackets where there is one."""
    return f"{what} ({note})" if note else what


def some(names: Iterable[str], *, separator: str = ", ", shown: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return separator.join(names[:shown]) + more
