"""A transfer set as a place of images: rows of other places in its own order, without labels."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.data.sources import open_source
from attar.data.transfer_set import IMAGES, KIND, is_transfer_set
from attar.errors import DataError
from attar.utils.io import write_json
from small_runs import write_pictures


@pytest.fixture
def folder(tmp_path):
    """Two images of the pool, the later one first, and one of a labelled folder."""
    write_pictures(tmp_path / "pool", 4)
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "task" / name, 1)
    places = [{"part": part, "references": [str(tmp_path / part)]} for part in ("pool", "task")]
    for place in places:
        place["fingerprint"] = open_source(place["references"][0]).fingerprint
    target = tmp_path / "set"
    target.mkdir()
    pq.write_table(pa.table({"part": ["pool", "pool", "task"], "row": [3, 1, 1]}), target / IMAGES)
    write_json(target / "manifest.json", {"kind": KIND, "places": places})
    return target


def test_its_order_is_that_of_its_rows_and_it_has_no_labels(folder, tmp_path):
    source = open_source(str(folder))
    pool, task = open_source(str(tmp_path / "pool")), open_source(str(tmp_path / "task"))
    assert task.labels() is not None
    assert [source.read(row) for row in range(len(source))] == [pool.read(3), pool.read(1), task.read(1)]
    assert source.labels() is None


def test_a_part_without_rows_opens_nothing_and_is_no_error(folder, tmp_path):
    pq.write_table(pa.table({"part": ["pool"], "row": [2]}), folder / IMAGES)
    assert len(open_source(str(folder))) == 1


def test_a_damaged_table_is_told_with_the_remedy(folder):
    (folder / IMAGES).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"is damaged: .*Give the same attar curate command again"):
        open_source(str(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "something else"}'])
def test_a_folder_with_another_manifest_is_no_set(folder, text):
    assert is_transfer_set(folder)
    (folder / "manifest.json").write_text(text)
    assert not is_transfer_set(folder)
