"""Raw pixels in records."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from attar.data.records import RecordFile, RecordSource
from attar.errors import DataError


def test_planes_become_channels_and_grey_becomes_rgb(tmp_path: Path) -> None:
    # catches (H, W, C) read as (C, H, W), rows taken for columns, the lead taken for a pixel
    pixels = np.arange(2 * 3 * 2 * 4, dtype=np.uint8).reshape(2, 3, 2, 4)  # (n, C, H, W)
    for number in range(2):
        (tmp_path / f"{number}.bin").write_bytes(b"head" + b"\xff\xfe" + pixels[number].tobytes())
    files = [RecordFile(tmp_path / f"{number}.bin", 4, 2, (3, 2, 4)) for number in range(2)]
    source = pickle.loads(pickle.dumps(RecordSource(files, np.array([1, 0]), ["a", "b"])))
    assert len(source) == 2
    for row in range(2):
        np.testing.assert_array_equal(source.read(row), pixels[row].transpose(1, 2, 0))
    assert source.name(1) == "1.bin[0]"
    assert source.uri(1) == f"{tmp_path}/1.bin#record=0"

    grey = RecordSource([RecordFile(tmp_path / "0.bin", 6, 0, (1, 6, 4))], np.array([0]), ["a"]).read(0)
    np.testing.assert_array_equal(grey, np.repeat(pixels[0].reshape(6, 4, 1), 3, axis=2))


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(25))
    with pytest.raises(DataError, match="25 bytes, which is no header of 0 and whole records of 13"):
        RecordSource([RecordFile(tmp_path / "x.bin", 0, 1, (3, 2, 2))], np.zeros(1, np.int64), ["a"])
    with pytest.raises(DataError, match="does not exist"):
        RecordSource([RecordFile(tmp_path / "y.bin", 0, 1, (3, 2, 2))], np.zeros(1, np.int64), ["a"])
