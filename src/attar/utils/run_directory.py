"""The run directory: one place for config, metrics, checkpoints, results and the student."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TextIO

from attar.config import VOLATILE, Config
from attar.config.files import read_settings, to_yaml
from attar.errors import ConfigError, RunDirectoryError, UserError
from attar.utils.io import read_json, remove_half_written, storage_errors, write_json, write_text
from attar.utils.locks import take_lock

_WORTH_KEEPING = ("checkpoints/step-*", "*/checkpoints/step-*", "*/done.json")  # of a run, and of one in stages


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and who it is.

    Attributes:
        path: The directory given as `--out`.
        run_id: Made when the run was started; checkpoints of another run do not fit.
        is_new: Whether this command started the run.
    """

    path: Path
    run_id: str
    is_new: bool

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def bad_files(self) -> Path:
        return self.path / "bad_files.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def student_last(self) -> Path:
        return self.path / "student-last"


@contextlib.contextmanager
def open_run(path: Path, config: Config, *, resume_anyway: bool = False) -> Iterator[RunDirectory]:
    """The directory a run shall have, for no other process within the block; nothing is written yet but the lock.

    A directory whose run has no checkpoint holds nothing worth keeping: it may start again with other settings.

    Raises:
        RunDirectoryError: If the directory cannot be written, is in use, holds something else, or a run with other
            settings.
    """
    with held_directory(path) as path:
        yield _look(path, config, resume_anyway=resume_anyway)


@contextlib.contextmanager
def held_directory(path: Path) -> Iterator[Path]:
    """The absolute path of a directory, made where there is none, for no other process within the block.

    One that was made and is empty at the end, as a refused run leaves it, is removed again.

    Raises:
        RunDirectoryError: If it cannot be made or written, or is in use.
    """
    path, missing = _looked_up(path)
    with contextlib.ExitStack() as held:
        for folder in missing:
            held.callback(_remove_if_empty, folder)
        lock = _hold(path / ".attar-lock")
        held.callback(lock.close)
        held.callback(_remove, Path(lock.name))
        with storage_errors(path):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {platform.node()}")
            lock.flush()
        yield path


def _looked_up(path: Path) -> tuple[Path, list[Path]]:
    """The absolute path, and the folders on the way to it that are not there, outermost first."""
    try:
        path = path.expanduser().resolve()
        str(path).encode()
    except (OSError, RuntimeError, ValueError) as error:  # a home that nobody has, a link to itself, no text
        reason = str(error).rstrip(".")
        raise RunDirectoryError(f"--out {path} leads nowhere: {reason}. Give another directory.") from None
    with storage_errors(path):
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"--out {path} is a file. Give a directory.")
        return path, [folder for folder in (*reversed(path.parents), path) if not folder.exists()]


def _hold(path: Path) -> TextIO:
    """The lock file of a run directory, locked, in a folder made where there is none; free when this process ends.

    Raises:
        RunDirectoryError: If the directory cannot be written, or another process holds the lock.
    """
    with storage_errors(path.parent):
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                file = path.open("a+", encoding="utf-8")
            except FileNotFoundError:
                if path.parent.exists():
                    raise
                continue  # who held the lock has removed the folder, which was empty
            if not take_lock(file):
                _complain_of_holder(file)
            with contextlib.suppress(FileNotFoundError):  # or the file alone
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        file.unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _complain_of_holder(file: TextIO) -> NoReturn:
    with file:
        file.seek(0)
        holder = file.read() or "another process"
    raise RunDirectoryError(
        f"--out {Path(file.name).parent} is in use by {holder}."
        " Wait for it, or end it and give the same command again; or choose a new --out."
    )


def _look(path: Path, config: Config, *, resume_anyway: bool) -> RunDirectory:
    if (path / "run.json").is_file():
        if not any(next(path.glob(kept), None) for kept in _WORTH_KEEPING):
            return RunDirectory(path, uuid.uuid4().hex, is_new=True)
        if not resume_anyway:
            _check_same(path, config)
        return RunDirectory(path, _run_id(path / "run.json"), is_new=False)
    if any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise RunDirectoryError(f"--out {path} is not empty and holds no attar run. Choose a new directory.")
    return RunDirectory(path, uuid.uuid4().hex, is_new=True)


def run_there(path: Path, config: Config, *, resume_anyway: bool = False) -> str:
    """What a command with these settings would meet in its directory, in words; empty where it begins a run.

    Nothing is written and no lock is taken.
    """
    try:
        path, missing = _looked_up(path)
        with storage_errors(path):
            if missing:
                return ""
            run = _look(path, config, resume_anyway=resume_anyway)
            if run.is_new:
                refuse_to_replace(run)
                return ""
    except UserError as refusal:
        return str(refusal)
    return (
        f"--out {path} holds a run: the command goes on with it, or tells its results again where it has ended."
        " Choose a new --out to begin another."
    )


def refuse_to_replace(run: RunDirectory) -> None:
    """Refuse to train from the beginning where a run has come to its end; else do nothing.

    Its mark is the last student, which nobody writes before the end: the one that is best so far has its place earlier.

    Raises:
        RunDirectoryError: If it has.
    """
    if run.student_last.exists():
        raise RunDirectoryError(
            f"--out {run.path} holds a finished run and no whole checkpoint: training would begin anew and replace its"
            f" student. Use {run.student} as it is, choose a new --out, or remove {run.student_last} to begin anew."
        )


def start_run(run: RunDirectory) -> RunDirectory:
    """Write who the run is, once everything it needs is known to work; remove what a killed writer left behind."""
    remove_half_written(run.path, "student", "student-last")
    remove_half_written(run.results)
    for folder in (run.checkpoints, run.best):
        remove_half_written(folder, "step-*")
    if run.is_new:
        for leftover in (run.metrics, run.bad_files, run.log):
            leftover.unlink(missing_ok=True)
        for leftover in (run.results, run.best):
            shutil.rmtree(leftover, ignore_errors=True)
        write_json(run.path / "run.json", {"run_id": run.run_id, "command": sys.argv, "versions": versions()})
    return run


def record_settings(run: RunDirectory, config: Config, *, version: str) -> None:
    """Write `config.yaml`, once nothing can refuse these settings any more; `--resume-anyway` may bring new ones."""
    head = f"attar {version}, Python {platform.python_version()}"
    write_text(run.path / "config.yaml", to_yaml(config, comment=head))


def versions() -> dict[str, str]:
    """Versions of what shapes a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("attar", "torch", "torchvision", "timm", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _run_id(file: Path) -> str:
    try:
        return str(read_json(file)["run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunDirectoryError(f"{file} is damaged: it names no run_id. Restore it, or choose a new --out.") from None


def _check_same(path: Path, config: Config) -> None:
    refuse_changes(
        changed_settings(path, config),
        f"--out {path} holds a run with other settings",
        remedy="Choose a new --out, or add --resume-anyway to go on with the new ones where checkpoints fit them.",
    )


def changed_settings(path: Path, config: Config, *, but: Collection[str] = ()) -> dict[str, tuple[Any, Any]]:
    """Settings that are others than those of `config.yaml` in a directory, but such as change no result.

    Args:
        path: The directory.
        config: Settings of now; those of before get today's defaults where they are older than a setting.
        but: Top-level settings that may differ.

    Returns:
        By their dotted names, (old value, new value).
    """
    before, now = _with_defaults(read_settings(path / "config.yaml"), config), config.model_dump(mode="json")
    changes = flat_changes(before, now)
    may_differ = {*VOLATILE, *but}
    return {key: values for key, values in changes.items() if may_differ.isdisjoint({key, key.split(".")[0]})}


def _with_defaults(settings: dict[str, Any], config: Config) -> dict[str, Any]:
    """Recorded settings with today's defaults where they are older than a setting; as they are if no longer valid."""
    try:
        return type(config).build(settings).model_dump(mode="json")
    except ConfigError:
        return settings


def refuse_changes(
    changes: Mapping[str, tuple[Any, Any]], said: str, *, remedy: str, error: type[UserError] = RunDirectoryError
) -> None:
    """Refuse what was made by other means than it should be; say nothing where nothing differs.

    Args:
        changes: As `flat_changes` finds them.
        said: What was made by other means, for the message.
        remedy: What to do, for the message.
        error: To raise.

    Raises:
        UserError: Of that kind, with the first six changes.
    """
    if changes:
        raise error(f"{said}: {told_changes(changes)}. {remedy}")


def told_changes(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The first six changes, in words."""
    words = {key: ["not set" if value is None else value for value in values] for key, values in changes.items()}
    return "; ".join(f"{key} was {old}, now {new}" for key, (old, new) in list(words.items())[:6])


def flat_changes(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by their dotted names: (old value, new value)."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes |= flat_changes(old, new, f"{prefix}{key}.")
        elif old != new:
            changes[f"{prefix}{key}"] = (old, new)
    return changes
