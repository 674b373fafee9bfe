"""Which of the students that were best for a time is the one that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from attar.recipes.kept import keep, take_back
from attar.utils.io import write_json
from attar.utils.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path, "some", is_new=True)


def keep_at(run: RunDirectory, step: int) -> None:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"of step {step}")

    keep(run, step, write)


def shipped(run: RunDirectory) -> str:
    return (run.student / "model.safetensors").read_text()


def test_those_that_a_checkpoint_names_stay_and_come_back(run: RunDirectory) -> None:
    keep_at(run, 5)
    write_json(run.checkpoints / "step-00000006/state.json", {"notes": {"best": {"step": 5}}})
    keep_at(run, 10)
    keep_at(run, 15)
    assert shipped(run) == "of step 15"
    assert sorted(path.name for path in run.best.iterdir()) == ["step-00000005", "step-00000015"]
    assert take_back(run, {"step": 5})  # killed, and gone back to the checkpoint
    assert shipped(run) == "of step 5"


def test_a_run_from_before_they_were_kept_ships_what_it_has(run: RunDirectory) -> None:
    assert not take_back(run, {"step": 5})
    run.student.mkdir()
    (run.student / "model.safetensors").write_text("an old one")
    assert take_back(run, {"step": 5})
    assert shipped(run) == "an old one"
