"""Students that a monitor liked best, kept by step: what ships is what the run's notes name, also after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attar.train import saved_notes
from attar.utils.io import new_folder, remove_folder
from attar.utils.run_directory import RunDirectory


def keep(run: RunDirectory, step: int, write: Callable[[Path], None]) -> None:
    """Keep the best student so far, show it in `student/`, and let go of those that nobody can ask for any more.

    A run that is cut off goes back to a checkpoint, whose best may be an older one: all that a checkpoint names stay.

    Args:
        run: Its directory.
        step: At which the student was judged.
        write: Writes it into a folder.
    """
    write(_kept(run, step))
    _show(run, step)
    named = {step, *(notes["best"]["step"] for notes in saved_notes(run.checkpoints) if "best" in notes)}
    for old in set(run.best.glob("step-*")) - {_kept(run, one) for one in named}:
        remove_folder(old)


def take_back(run: RunDirectory, best: Mapping[str, Any]) -> bool:
    """Make `student/` the one that `best` names, whatever was kept after it; whether there is one."""
    if _kept(run, best["step"]).is_dir():
        _show(run, best["step"])
    return any(run.student.glob("*.safetensors"))  # of a run from before they were kept by step


def _show(run: RunDirectory, step: int) -> None:
    with new_folder(run.student) as temporary:
        shutil.copytree(_kept(run, step), temporary, dirs_exist_ok=True)


def _kept(run: RunDirectory, step: int) -> Path:
    return run.best / f"step-{step:08d}"
