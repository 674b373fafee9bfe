"""Rows go into an Arrow file batch by batch, however long they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import attar.data.mapped as mapped_module
from attar.data.mapped import ArrowFile


@pytest.mark.parametrize(("rows", "size", "batches"), [(100, 1 << 20, [100, 100, 50]), (10**6, 1000, [34] * 7 + [12])])
def test_a_batch_has_neither_too_many_rows_nor_too_long_names(
    rows: int, size: int, batches: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 names of 30 bytes."""
    monkeypatch.setattr(mapped_module, "_ROWS", rows)
    monkeypatch.setattr(mapped_module, "_BYTES", size)
    file = ArrowFile(tmp_path / "rows.arrow", {"name": pa.binary(), "number": pa.int64()})
    for number in range(250):
        file.append(b"%030d" % number, number)
    file.close()
    found = pa.ipc.open_file(tmp_path / "rows.arrow")
    assert [found.get_batch(one).num_rows for one in range(found.num_record_batches)] == batches
    table = found.read_all()
    assert table["number"].to_pylist() == list(range(250))
    assert [int(name) for name in table["name"].to_pylist()] == list(range(250))
