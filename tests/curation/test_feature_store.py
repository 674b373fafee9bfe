"""Sealed folders of rows: what is read is what was written, and what does not belong is refused with its reason."""

import errno
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from attar.curation.feature_store import (
    MappedRows,
    begin,
    check_fresh,
    check_sealed,
    is_sealed,
    replace_rows,
    seal,
    sealed_rows,
    unreadable_rows,
    write_rows,
)
from attar.errors import DataError, Interrupted, WeightsError
from attar.utils.signals import polite_stop

MADE_BY = {"teacher": {"fingerprint": "abc", "mean": (0.5, 0.5)}, "images": "def"}


@pytest.fixture
def folder(tmp_path):
    """Rows 0 to 9 in three files, row i being (i, -i)."""
    rows = np.stack([np.arange(10), -np.arange(10)], 1).astype(np.float16)
    assert begin(tmp_path, MADE_BY, "images")
    for number, part in enumerate(np.split(rows, [4, 5])):
        write_rows(tmp_path / f"vectors-{number:05}.npy", part)
    seal(tmp_path, 10)
    return tmp_path


def test_rows_come_in_the_order_asked_for_across_files(folder):
    rows = sealed_rows(folder)
    wanted = np.array([9, 0, 4, 4, 3, 5])
    assert rows.shape == (10, 2)
    assert rows[wanted].tolist() == [[row, -row] for row in wanted.tolist()]
    assert rows[wanted].dtype == np.float16


FEW_FILES = """
import pathlib, resource, sys
import numpy as np
from attar.curation.feature_store import MappedRows
files = [pathlib.Path(sys.argv[1]) / f"{number:02}.npy" for number in range(80)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
rows = MappedRows(files)
asked = np.arange(79, -1, -1)
assert rows[asked].tolist() == rows[asked].tolist() == [[row, -row] for row in asked.tolist()]
"""


def test_more_files_than_a_process_may_open_are_no_hindrance(tmp_path):
    for number in range(80):
        np.save(tmp_path / f"{number:02}.npy", np.array([[number, -number]]))
    done = subprocess.run([sys.executable, "-c", FEW_FILES, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_system_refuses_is_not_called_damaged(folder, monkeypatch):
    def refuse(*_args, **_options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(DataError, match=r"vectors-00000\.npy cannot be read: Too many open files\. .*keep it") as found:
        sealed_rows(folder)
    assert "Remove" not in str(found.value)


def test_a_folder_that_is_whole_passes_and_one_that_is_not_sealed_is_none(folder, tmp_path_factory):
    check_sealed(folder, MADE_BY, "images")
    assert is_sealed(folder)
    assert not is_sealed(tmp_path_factory.mktemp("empty"))


def test_another_teacher_is_named(folder):
    other = MADE_BY | {"teacher": {"fingerprint": "xyz", "mean": (0.5, 0.5)}}
    with pytest.raises(WeightsError, match=r"teacher\.fingerprint was abc, now xyz.*--features"):
        check_sealed(folder, other, "images")


def test_one_flipped_bit_is_seen(folder):
    file = folder / "vectors-00001.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"vectors-00001\.npy was changed"):
        check_sealed(folder, MADE_BY, "images")


def test_a_file_that_is_gone_is_named(folder):
    (folder / "vectors-00002.npy").unlink()
    with pytest.raises(DataError, match=r"vectors-00002\.npy is gone"):
        check_sealed(folder, MADE_BY, "images")


def test_what_stands_in_the_folder_besides_is_not_taken_for_rows(folder):
    np.save(folder / "vectors-00003.npy", np.zeros((2, 2), np.float16))
    assert len(sealed_rows(folder)) == 10


def test_files_of_different_widths_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    np.save(tmp_path / "b.npy", np.zeros((2, 3)))
    with pytest.raises(DataError, match="different widths"):
        MappedRows([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_no_pickle_is_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        MappedRows([tmp_path / "a.npy"])


def test_stored_vectors_pass_whatever_their_length_and_rounding(tmp_path):
    fresh = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    check_fresh((fresh / 7).half(), fresh, str, "images", tmp_path)


@pytest.mark.parametrize("broken", ["turned", "zero", "nan"])
def test_one_vector_of_many_that_differs_is_named(broken, tmp_path):
    fresh = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    stored = fresh.clone()
    stored[5] = {"turned": fresh[5].roll(1), "zero": torch.zeros(16), "nan": torch.full((16,), float("nan"))}[broken]
    with pytest.raises(WeightsError, match="image 5 has a cosine"):
        check_fresh(stored, fresh, lambda n: f"image {n}", "images", tmp_path)


def test_another_width_is_told(tmp_path):
    with pytest.raises(WeightsError, match="are 16 wide, this teacher gives 8"):
        check_fresh(torch.ones(3, 16), torch.ones(3, 8), str, "images", tmp_path)


def test_what_it_was_made_by_is_kept_as_json(folder):
    assert json.loads((folder / "sealed.json").read_text())["made_by"]["teacher"]["mean"] == [0.5, 0.5]


def test_what_a_killed_run_has_made_is_gone_on_with_by_its_like_alone(tmp_path):
    assert begin(tmp_path, MADE_BY, "images")
    write_rows(tmp_path / "vectors-00000.npy", np.ones((2, 2), np.float16))
    (tmp_path / ".vectors-00001.npy.o3r5_6b5.part").touch()
    with pytest.raises(WeightsError, match="images was def, now other"):
        begin(tmp_path, MADE_BY | {"images": "other"}, "images")
    assert begin(tmp_path, MADE_BY, "images")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made_by.json", "vectors-00000.npy"]
    seal(tmp_path, 2)
    assert not begin(tmp_path, MADE_BY, "images")


def test_files_of_unknown_making_are_not_adopted(tmp_path):
    np.save(tmp_path / "vectors-00000.npy", np.ones((2, 2)))
    with pytest.raises(DataError, match="nobody knows what"):
        begin(tmp_path, MADE_BY, "images")


@pytest.mark.parametrize("count", [9, 11])
def test_too_few_or_too_many_rows_are_not_sealed(count, folder):
    (folder / "sealed.json").unlink()
    with pytest.raises(DataError, match=f"holds 10 rows in 3 files, and should hold {count}"):
        seal(folder, count)
    assert not is_sealed(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"made_by": {}, "sha256": []}'])
def test_a_damaged_seal_is_told_in_words(text, folder):
    (folder / "sealed.json").write_text(text)
    with pytest.raises(DataError, match=r"sealed\.json is damaged .*Remove"):
        check_sealed(folder, MADE_BY, "images")


def test_rows_are_replaced_and_the_folder_stays_sealed(folder):
    before = sealed_rows(folder)[np.arange(10)]
    seal(folder, 10, unreadable=[0, 4, 7, 9])
    replace_rows(folder, np.array([4, 0, 9]), np.array([[7, 1], [7, 2], [7, 3]], np.float16))
    check_sealed(folder, MADE_BY, "images")
    assert unreadable_rows(folder).tolist() == [7]
    after = sealed_rows(folder)[np.arange(10)]
    assert after[[4, 0, 9]].tolist() == [[7, 1], [7, 2], [7, 3]]
    untouched = [1, 2, 3, 5, 6, 7, 8]
    assert after[untouched].tolist() == before[untouched].tolist()
    assert after.dtype == np.float16


@pytest.mark.parametrize("work", ["check", "seal"])
def test_a_signal_stops_what_reads_every_byte(work, folder):
    with polite_stop():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="checking images" if work == "check" else "hashing features"):
            check_sealed(folder, MADE_BY, "images") if work == "check" else seal(folder, 10)


def test_files_of_different_types_are_refused(tmp_path):
    # rows of the second would be cut to the type of the first
    np.save(tmp_path / "a.npy", np.zeros((2, 2), np.uint16))
    np.save(tmp_path / "b.npy", np.full((2, 2), 70_000, np.int32))
    with pytest.raises(DataError, match="different widths or types"):
        MappedRows([tmp_path / "a.npy", tmp_path / "b.npy"])
