"""A file or folder is either as it was or as it shall be; nothing half, nothing left lying about."""

import errno
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from contextlib import contextmanager

import pytest

from attar.errors import DamagedFileError, RunDirectoryError
from attar.utils.io import (
    _put_in_place,
    append_line,
    cache_dir,
    new_folder,
    read_json,
    remove_folder,
    remove_half_written,
    sha256_file,
    storage_errors,
    write_json,
    write_text,
)
from disk import watched


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@contextmanager
def little_room():
    """No file may grow beyond 4 KB: what a full disk looks like, without filling one.

    Not a fixture: the limit holds for the whole process, and pytest writes its own log, which may be a longer file,
    before a fixture is taken down.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mode(path):
    return path.stat().st_mode & 0o777


def everything(folder):
    """Every path below a folder, hidden ones too, with the content of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# --- files ----------------------------------------------------------------------------------------------------------


def test_text_is_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "deep" / "x.txt"
    write_text(path, "größe\r\n")
    assert path.read_bytes() == "größe\r\n".encode()
    write_text(path, "second")
    assert everything(tmp_path / "new") == {"deep": None, "deep/x.txt": b"second"}


def test_a_reader_never_sees_a_half_written_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"  # another file took its name; this one was not touched
    assert path.read_text() == "new"


def test_text_that_cannot_be_encoded_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "a" * 100_000 + "\udcff")
    assert everything(tmp_path) == {"x.txt": b"old"}


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    with (
        pytest.raises(RunDirectoryError, match=r"cannot write .*x\.txt: File too large\. Free some space"),
        little_room(),
    ):
        write_text(path, "a" * 100_000)
    assert everything(tmp_path) == {"x.txt": b"old"}


def test_files_get_the_permissions_of_the_umask(tmp_path, umask):
    write_text(tmp_path / "x.txt", "x")
    assert mode(tmp_path / "x.txt") == 0o666 & ~umask
    assert os.umask(umask) == umask  # and the umask is as it was


def test_json_keeps_order_and_writes_what_is_not_finite_as_null(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": float("nan"), "a": [float("inf"), -float("inf"), 1.5, ("t", 1)], 3: {"é": None, "x": True}})
    assert (
        path.read_text()
        == json.dumps({"b": None, "a": [None, None, 1.5, ["t", 1]], "3": {"é": None, "x": True}}, indent=2) + "\n"
    )
    assert list(read_json(path)) == ["b", "a", "3"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"x": object()})
    assert everything(tmp_path) == {"x.json": b"1\n"}


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_hashes_are_of_the_whole_file(tmp_path, size):
    data = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "x").write_bytes(data[:size])
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data[:size]).hexdigest()


# --- folders --------------------------------------------------------------------------------------------------------


def fill(folder, text):
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text(text)
    (folder / "sub" / "b.txt").write_text(text)


def test_a_folder_appears_when_it_is_full(tmp_path):
    target = tmp_path / "new" / "x"
    with new_folder(target) as folder:
        fill(folder, "one")
        assert folder.parent == target.parent  # on the same file system, so that a rename is enough
        assert not target.exists()
    assert everything(tmp_path / "new") == {"x": None, "x/a.txt": b"one", "x/sub": None, "x/sub/b.txt": b"one"}


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "x"
    with new_folder(target) as folder:
        fill(folder, "one")
        (folder / "only-old.txt").write_text("one")
    with new_folder(target) as folder:
        fill(folder, "two")
        assert (target / "only-old.txt").read_text() == "one"
    assert everything(tmp_path) == {"x": None, "x/a.txt": b"two", "x/sub": None, "x/sub/b.txt": b"two"}


def fill_and_fail(folder, error):
    fill(folder, "half")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_leaves_what_was_there(tmp_path, error):
    target = tmp_path / "x"
    for _ in range(2):  # first there is nothing, then there is a folder
        before = everything(tmp_path)
        with pytest.raises(error), new_folder(target) as folder:
            fill_and_fail(folder, error)
        assert everything(tmp_path) == before
        target.mkdir(exist_ok=True)
        (target / "old.txt").write_text("old")


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    target = tmp_path / "x"
    with new_folder(target) as folder:
        fill(folder, "one")
    before = everything(tmp_path)
    with (
        pytest.raises(RunDirectoryError, match=r"cannot write .*x: File too large\. Free some space"),
        little_room(),
        new_folder(target) as folder,
    ):
        (folder / "large").write_bytes(bytes(100_000))
    assert everything(tmp_path) == before


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old.txt").write_text("old")
    with pytest.raises(FileNotFoundError):
        _put_in_place(tmp_path / "gone", tmp_path / "x")
    assert everything(tmp_path) == {"x": None, "x/old.txt": b"old"}


def test_folders_and_what_is_in_them_get_the_permissions_of_the_umask(tmp_path, umask):
    with new_folder(tmp_path / "x") as folder:
        (folder / "private").write_text("x")
        (folder / "private").chmod(0o600)  # as some writers make their files
    assert mode(tmp_path / "x") == 0o777 & ~umask
    assert mode(tmp_path / "x" / "private") == 0o666 & ~umask


def _replace_often(target, start, failures, number):
    start.wait()
    try:
        for turn in range(15):
            with new_folder(target) as folder:
                for name in "abc":
                    (folder / name).write_text(f"{number}.{turn}")
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_several_processes_may_make_the_same_folder_at_once(tmp_path):
    # every rank of a run indexes the same images at its start
    context = multiprocessing.get_context("fork")
    start, failures = context.Barrier(4), context.Queue()
    arguments = (tmp_path / "x", start, failures)
    processes = [context.Process(target=_replace_often, args=(*arguments, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()
    assert [process.exitcode for process in processes] == [0] * 4
    found = everything(tmp_path)
    assert list(found) == ["x", "x/a", "x/b", "x/c"]  # nothing is left lying about
    assert found["x/a"] == found["x/b"] == found["x/c"]  # and nothing is mixed


# --- errors and places ----------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        RunDirectoryError, match=r"cannot write .*: (Not a directory|File exists)\. Choose a folder .* --out"
    ):
        write_text(tmp_path / "file" / "deep" / "x.txt", "x")
    with (
        pytest.raises(RunDirectoryError, match=r"Choose a folder you may write with --out"),
        new_folder(tmp_path / "file" / "x"),
    ):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        *[(errno.ENOSPC, "Free some space"), (errno.EDQUOT, "Free some space"), (None, "Free some space")],
        *[(errno.EACCES, "--out"), (errno.EROFS, "--out"), (errno.ENAMETOOLONG, "--out")],
    ],
)
def test_the_remedy_fits_the_error(tmp_path, number, remedy):
    error = OSError(number, os.strerror(number)) if number else OSError("a library says so")
    with pytest.raises(RunDirectoryError) as caught, storage_errors(tmp_path / "x"):
        raise error
    assert str(tmp_path / "x") in str(caught.value)
    assert remedy in str(caught.value)
    assert (os.strerror(number) if number else "a library says so") in str(caught.value)


def test_a_cache_that_cannot_be_written_names_its_variable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunDirectoryError, match="Set ATTAR_CACHE"):
        write_text(cache_dir() / "x", "x")


def test_other_errors_pass(tmp_path):
    with pytest.raises(ValueError, match="mine"), storage_errors(tmp_path):
        raise ValueError("mine")


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTAR_CACHE", str(tmp_path / "c"))
    assert cache_dir() == tmp_path / "c"
    monkeypatch.setenv("ATTAR_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir().name == "attar"
    assert cache_dir().is_relative_to(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_named_and_may_be_taken_for_a_value_error(tmp_path, content):
    (tmp_path / "about.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"about\.json is damaged: it holds no JSON"):
        read_json(tmp_path / "about.json")
    assert issubclass(DamagedFileError, ValueError)


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    kept = (".attar-lock", "run.json", ".git", "metrics.jsonl", ".notes.markdown", ".hidden.abcdefgh.part.txt")
    for name in (*kept, ".run.json.o3r5_6b5.part", ".config.yaml.abcdefgh.part"):
        (tmp_path / name).write_text("")
    (tmp_path / ".folder.abcdefgh").mkdir()
    for name in (".step-00000004.o3r5_6b5", ".step-00000004.removed"):
        fill_in(tmp_path / name)
    remove_half_written(tmp_path, older_than_s=3600)
    assert len(list(tmp_path.iterdir())) == len(kept) + 5  # they may be somebody's who is writing now
    remove_half_written(tmp_path, "step-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*kept, ".folder.abcdefgh"))
    os.utime(tmp_path / ".folder.abcdefgh", (0, 0))
    remove_half_written(tmp_path, "folder", older_than_s=3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_what_a_killed_writer_left_goes_though_a_file_servers_clock_is_ahead(tmp_path):
    (tmp_path / ".run.json.o3r5_6b5.part").write_text("")
    os.utime(tmp_path / ".run.json.o3r5_6b5.part", (time.time() + 100,) * 2)
    remove_half_written(tmp_path, older_than_s=3600)
    assert len(list(tmp_path.iterdir())) == 1
    remove_half_written(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_loses_its_name_first(tmp_path):
    # or a reader, and whoever comes after a kill on the way, would find a half under the name of a whole one
    fill_in(tmp_path / "x")
    (tmp_path / "other").mkdir()
    seen = []
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(lambda event, _: os._exit(7) if event == "shutil.rmtree" and seen else seen.append(event))
        remove_folder(tmp_path / "x")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    left = [path for path in tmp_path.iterdir() if path.name != "other"]
    assert [path.name.startswith(".x.") for path in left] == [True]
    assert everything(left[0]) == {"a.txt": b"one", "sub": None, "sub/b.txt": b"one"}
    fill_in(tmp_path / "x")
    remove_folder(tmp_path / "x")  # what the killed one left is no obstacle, and goes
    remove_folder(tmp_path / "x")  # nor is it an error where there is none
    assert everything(tmp_path) == {"other": None}


# --- what a power cut leaves ----------------------------------------------------------------------------------------


def fill_in(folder):
    folder.mkdir()
    fill(folder, "one")


@pytest.mark.parametrize("is_there", [False, True])
def test_bytes_are_on_the_disk_before_a_file_gets_its_name_and_the_name_afterwards(tmp_path, is_there):
    path = tmp_path / "x.txt"
    if is_there:
        path.write_text("old")
    with watched() as disk:
        write_text(path, "text" * 10_000)
    assert disk.problems(path) == []


@pytest.mark.parametrize("is_there", [False, True])
def test_all_of_a_folder_is_on_the_disk_before_it_gets_its_name(tmp_path, is_there):
    if is_there:
        fill_in(tmp_path / "x")
    with watched() as disk, new_folder(tmp_path / "x") as folder:
        fill(folder, "two")
    assert disk.problems(tmp_path / "x") == []


def test_a_line_is_on_the_disk_when_it_has_been_appended(tmp_path):
    path = tmp_path / "x.jsonl"
    for number in range(2):
        with watched() as disk:
            append_line(path, {"step": number})
        assert [(one.inode, one.size) for one in disk.asked] == [(path.stat().st_ino, path.stat().st_size)]


def test_what_is_left_out_would_be_noticed(tmp_path):
    (tmp_path / "half").write_text("a")
    with watched() as disk, (tmp_path / "half").open("a") as file:
        os.fsync(file.fileno())
        file.write("more, which nobody syncs")
        file.flush()
        os.rename(tmp_path / "half", tmp_path / "whole")
    assert disk.problems(tmp_path / "whole") == [
        "whole was not synced before the rename",
        "the folder of whole was not synced after the rename",
    ]
    assert disk.problems(tmp_path / "half") == ["half was not renamed"]
