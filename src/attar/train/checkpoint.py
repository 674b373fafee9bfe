"""Checkpoints that are either whole or not there, hold no code, and are proven before they are read.

One folder a checkpoint: `tensors.safetensors`, `state.json`, and `manifest.json` with size and SHA-256 of both. The
folder is written under a temporary name, synced, and renamed; a folder whose manifest does not verify is no checkpoint.
Tensors are full (not sharded): what learns is small beside its teacher, so the same files serve any number of ranks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attar.errors import CheckpointError
from attar.train.state import TrainState
from attar.utils.distributed import from_main, is_main, wait_for_all
from attar.utils.io import new_folder, read_json, remove_folder, sha256_file, sync_file, write_json

_NAME = re.compile(r"step-(\d{8})$")
_REMEDIES = {
    "data_fingerprint": "Restore the data, choose a new --out, or add --resume-anyway to go on with these images.",
    "teacher": "Restore the teacher's weights, choose a new --out, or add --resume-anyway.",
    "teacher_classifier": "Restore that file, choose a new --out, or add --resume-anyway.",
}


def save_checkpoint(folder: Path, state: TrainState, identity: dict[str, Any], *, keep: int) -> Path:
    """Write a checkpoint of `state` and remove older ones beyond `keep`, after the new one is in place.

    All ranks take part, the main one writes, and none goes on before it is done.

    Args:
        folder: The run's `checkpoints` folder.
        state: What to save.
        identity: What a resume must agree with: run id, fingerprint of the data, hash of the teacher's weights. Its
            `places`, what each place of the data holds, are there to tell what has changed.
        keep: Checkpoints that stay.

    Raises:
        RunDirectoryError: If the disk is full or the folder cannot be written; the older checkpoints are untouched.
    """
    target = folder / f"step-{state.step:08d}"
    if from_main(lambda: target.exists() and not _damage(target)):
        return target
    tensors = state.tensors()
    if is_main():
        with new_folder(target) as temporary:
            save_file(tensors, temporary / "tensors.safetensors")
            write_json(temporary / "state.json", {"step": state.step, "notes": state.notes, **identity})
            write_json(temporary / "manifest.json", {"files": _described_while_synced(temporary)})
        _remove_old(folder, target, keep)
    wait_for_all()
    return target


def _remove_old(folder: Path, newest: Path, keep: int) -> None:
    known = _numbered(folder)
    ahead = [path for path in known if path.name > newest.name]  # damaged, or this run would not be behind them
    for old in ahead + [path for path in known if path not in ahead][:-keep]:
        remove_folder(old)


def load_checkpoint(
    folder: Path,
    state: TrainState,
    identity: dict[str, Any],
    *,
    anyway: bool = False,
    say: Callable[[str], None] = print,
) -> Path | None:
    """Load the newest complete checkpoint into `state`; damaged ones are passed over, and `say` is told.

    With `anyway` other data and another teacher are no error: `say` and the state's notes are told what has changed.

    Returns:
        The checkpoint, or None if there is no complete one.

    Raises:
        CheckpointError: If the newest complete one belongs to other data, another teacher or another run.
    """
    path = from_main(lambda: _newest_complete(folder, say))
    if path is None:
        return None
    try:
        about = read_json(path / "state.json")
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read on each machine of this run ({error.strerror})."
            " Give an --out on storage that all of them share."
        ) from None
    changes = dict(_changes(about, identity))
    for key, change in changes.items():
        if not anyway or key == "run_id":
            remedy = _REMEDIES.get(key, "Choose a new --out.")
            raise CheckpointError(f"checkpoint {path} was made with {change}. {remedy}")
    try:
        state.load_tensors(_TensorFile(path / "tensors.safetensors"))
    except (RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} does not fit this run's models ({error}). Choose a new --out."
        ) from None
    state.step, state.notes = about["step"], about["notes"]
    for change in changes.values():
        say(f"  resume   anyway: {path.name} was made with {change}")
        state.notes.setdefault("changes", []).append(f"up to step {state.step:,} with {change}")
    return path


def saved_notes(folder: Path) -> list[dict[str, Any]]:
    """Notes of all checkpoints in a folder: a run may go back to any of them, should newer ones be damaged."""
    found = []
    for path in _numbered(folder):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one
            found.append(read_json(path / "state.json")["notes"])
    return found


def saved_learner(folder: Path, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What `state.json` of the newest complete checkpoint says, and the learner's tensors below a name.

    For those who look at a finished run; a damaged checkpoint is passed over without a word.

    Args:
        folder: The run's `checkpoints` folder.
        prefix: As in `feature_head.`; names are returned without it.
    """
    path = _newest_complete(folder, say=lambda _: None)
    if path is None:
        return None
    tensors, start = _TensorFile(path / "tensors.safetensors"), f"learner/{prefix}"
    found = {name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}
    return read_json(path / "state.json"), found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a checkpoint was made with and is another now, in words; one of an older version may not know all of it."""
    for key in [key for key in now if key != "places" and before.get(key, now[key]) != now[key]]:
        if key == "data_fingerprint" and "places" in before:
            yield key, f"other data: {_changed_places(before['places'], now['places'])}"
        else:
            yield key, f"another {key.replace('_', ' ')} ({before[key]}, now {now[key]})"


def _changed_places(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    changed = [
        f"{name} had {before.get(name, 'no part')}, now {now.get(name, 'no part')}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    return "; ".join(changed) or "the same places in another order"


class _TensorFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file, read one at a time: a rank that keeps a share never holds the whole."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())


def _newest_complete(folder: Path, say: Callable[[str], None]) -> Path | None:
    for path in reversed(_numbered(folder)):
        if not (damage := _damage(path)):
            return path
        say(f"  resume   {path.name} is damaged ({damage}) and passed over")
    return None


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json")
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files}


def _described_while_synced(folder: Path) -> dict[str, dict[str, Any]]:
    """The same, made while the system puts the files on the disk: one takes the processor, the other waits for it.

    Hashed is what the system has taken, read back, and not what stands in memory: the bytes that it is putting on the
    disk and that a reader gets. So a manifest finds whatever happens to them from here on, in the system's memory, on
    the way or on the disk, before or after the sync alike: neither order of the two would read from the disk itself.
    It cannot find what went wrong before they were taken; tensors that fall over in memory are as wrong as any hash.
    """
    with ThreadPoolExecutor(1) as aside:
        described = aside.submit(_describe, folder)
        for path in folder.iterdir():
            sync_file(path)
        return described.result()


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; nothing where every file has the size and hash that its manifest says."""
    try:
        said = read_json(path / "manifest.json")["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest.json is missing or cannot be read"
    try:
        found = _describe(path)
        names = [] if said == found else [name for name in {**said, **found} if said.get(name) != found.get(name)]
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read"
    except (TypeError, AttributeError):
        return "its manifest.json says nothing of files"
    return f"not as its manifest says: {', '.join(sorted(names))}" if names else ""


def _numbered(folder: Path) -> list[Path]:
    """Checkpoint folders by step, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]
