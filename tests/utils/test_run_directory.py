"""Whose directory it is: a new run, the same run again, another one, or none of attar's."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from attar.config import DistillConfig
from attar.errors import ConfigError, RunDirectoryError
from attar.utils.io import read_json
from attar.utils.run_directory import open_run, record_settings, run_there, start_run, versions
from small_runs import environment

NEEDED = {"teacher": "t", "student": "s", "data": "d", "out": "o"}
CONFIG = DistillConfig(**NEEDED)


def opened(path, config=CONFIG, **more):
    """What opening finds."""
    with open_run(path, config, **more) as run:
        return run


def started(path, config=CONFIG, *, step=1):
    """A run that has been started, with a checkpoint unless `step` is 0."""
    run = start_run(opened(path, config))
    record_settings(run, config, version="0.1")
    if step:
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    return run


def test_opening_leaves_nothing_and_starting_names_the_run(tmp_path):
    (tmp_path / "empty").mkdir()
    run = opened(tmp_path / "a/b")
    assert run.is_new
    assert opened(tmp_path / "empty").is_new
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]  # what the user made stays
    with open_run(tmp_path / "a/b", CONFIG) as run:
        started_run = start_run(run)
    assert read_json(started_run.path / "run.json")["run_id"] == run.run_id


def test_what_a_refused_run_has_made_goes_unless_something_else_lies_in_it(tmp_path):
    with suppress(ConfigError), open_run(tmp_path / "a/b/c", CONFIG) as run:
        (run.path.parents[1] / "other").touch()
        raise ConfigError("refused")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a/other"]


def test_what_a_command_would_meet_is_told_and_nothing_written(tmp_path):
    run = tmp_path / "run"
    assert run_there(run, CONFIG) == ""
    started(run, step=0)
    assert run_there(run, CONFIG) == ""  # it begins anew
    started(run)
    before = sorted(tmp_path.rglob("*"))
    assert "holds a run: the command goes on with it" in run_there(run, CONFIG)
    other = CONFIG.replace(batch_size=7)
    assert "holds a run with other settings: batch_size was" in run_there(run, other)
    assert "goes on with it" in run_there(run, other, resume_anyway=True)
    assert "holds no attar run" in run_there(tmp_path, CONFIG)
    assert sorted(tmp_path.rglob("*")) == before
    (run / "student-last").mkdir()
    (run / "checkpoints/step-00000001").rmdir()
    assert "holds a finished run and no whole checkpoint" in run_there(run, CONFIG)


def test_a_directory_that_its_holder_removes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    lock, path = fcntl.lockf, tmp_path / "run"

    def lock_after_the_holder_has_gone(*args):
        monkeypatch.setattr(fcntl, "lockf", lock)
        (path / ".attar-lock").unlink()
        path.rmdir()
        return lock(*args)

    monkeypatch.setattr(fcntl, "lockf", lock_after_the_holder_has_gone)
    with open_run(path, CONFIG) as run:
        assert [file.name for file in run.path.iterdir()] == [".attar-lock"]


def test_the_same_settings_go_on_with_the_same_run(tmp_path):
    first = started(tmp_path)
    again = opened(tmp_path, DistillConfig(**NEEDED))
    assert (again.is_new, again.run_id) == (False, first.run_id)
    assert read_json(start_run(again).path / "run.json")["run_id"] == first.run_id


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 3, "device": "cpu", "log_every": 7, "max_bad_share": 0.5},
        {"checkpoint": {"every": 5}, "parallel": {"engine": "fsdp2"}},
        {"out": "elsewhere", "recipe": None, "resume_anyway": False},
    ],
)
def test_settings_that_change_nothing_learned_may_differ(settings, tmp_path):
    started(tmp_path)
    assert not opened(tmp_path, CONFIG.replace(**settings)).is_new


def test_a_run_of_an_older_version_goes_on_without_the_settings_it_did_not_know(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("teacher: t\nstudent: s\ndata: d\nout: o\n")
    assert not opened(tmp_path).is_new
    with pytest.raises(RunDirectoryError, match="method was proteus, now hint"):
        opened(tmp_path, CONFIG.replace(method="hint"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"method": "hint"}, "method was proteus, now hint"),
        ({"optim": {"lr": 0.5}}, r"optim\.lr was not set, now 0\.5"),
        ({"data": ("d", "e")}, r"data was d, now \['d', 'e'\]"),
    ],
)
def test_settings_that_change_what_is_learned_are_another_run(settings, says, tmp_path):
    first, other = started(tmp_path), CONFIG.replace(**settings)
    with pytest.raises(RunDirectoryError, match=rf"other settings: {says}.*--resume-anyway"):
        opened(tmp_path, other)
    assert opened(tmp_path, other, resume_anyway=True).run_id == first.run_id


def test_without_a_checkpoint_it_may_start_again_with_other_settings(tmp_path):
    first = started(tmp_path, step=0)
    first.metrics.write_text("{}\n")
    (first.results).mkdir()
    (first.best / "step-00000001").mkdir(parents=True)
    again = start_run(opened(tmp_path, CONFIG.replace(seed=1)))
    assert again.is_new
    assert again.run_id != first.run_id
    assert not first.metrics.exists()
    assert not first.results.exists()
    assert not first.best.exists()


def test_going_on_keeps_what_the_run_wrote_and_removes_what_a_killed_writer_left(tmp_path):
    run = started(tmp_path)
    run.metrics.write_text("{}\n")
    leftovers = [run.path / ".student.abc", run.checkpoints / ".step-00000002.xyz", run.best / ".step-00000002.x"]
    for path in leftovers:
        path.mkdir(parents=True)
    start_run(opened(tmp_path))
    assert run.metrics.exists()
    assert not any(path.exists() for path in leftovers)
    assert (run.checkpoints / "step-00000001").is_dir()


def test_a_directory_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunDirectoryError, match="is not empty and holds no attar run"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_do_not_make_it_something_else(tmp_path):
    (tmp_path / ".DS_Store").touch()
    assert opened(tmp_path).is_new


@pytest.mark.parametrize("text", ["{", "{}", "[]", "null"])
def test_a_damaged_run_json_is_named(text, tmp_path):
    started(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=r"run\.json is damaged: it names no run_id"):
        opened(tmp_path)


def test_a_path_that_leads_nowhere_is_named(tmp_path):
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "loop", tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(RunDirectoryError, match=r"Give (a|another) directory|--out"):
            opened(path)


def test_versions_name_what_shapes_a_result():
    assert {"python", "platform", "torch", "timm", "numpy"} <= versions().keys()
    assert versions()["torch"] != "not installed"


# --- one process at a time ------------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
from pathlib import Path
from attar.config import DistillConfig
from attar.utils.run_directory import open_run
with open_run(Path(sys.argv[1]), DistillConfig(teacher="t", student="s", data="d", out="o")):
    if os.fork() == 0:  # as a loader's worker is
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(path):
    """A process that holds the directory, and has a forked child; both end with the block."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_directory_in_use_is_refused_and_the_holder_named(tmp_path):
    with holding(tmp_path) as holder:
        with pytest.raises(RunDirectoryError, match=rf"in use by process {holder.pid} on .*choose a new --out"):
            opened(tmp_path)
        with pytest.raises(RunDirectoryError, match=f"process {holder.pid}"):  # asking has not taken the lock away
            opened(tmp_path)


def test_a_killed_process_holds_nothing_though_its_workers_live_on(tmp_path):
    # catches flock, which a forked child goes on holding
    with holding(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert opened(tmp_path).is_new
        os.killpg(holder.pid, 0)  # the child is there
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    assert opened(tmp_path).is_new
