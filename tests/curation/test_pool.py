"""A pool gives back what was written, in bounded pieces, and refuses what is not whole or not the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from attar.curation.pool import Manifest, Pool, describe_shard, read_unreadable, shard_name, write_shard
from attar.data.sources import open_source
from attar.errors import DataError
from attar.types import BadFile
from attar.utils.io import write_json

PLACE, WIDTH, SIZES = "playground:4?n=25", 8, (10, 10, 5)
MODEL = {"reference": "m", "weights": "random", "file": None, "sha256": None, "licence": None}
ABOUT = {
    "versions": {},
    "model": MODEL | {"fingerprint": "f", "img_size": 8, "mean": [0, 0, 0], "std": [1, 1, 1]},
    "view": {"img_size": 8, "crop_pct": 1.0, "implementation": "pil-1"},
    "precision": "fp32",
    "width": WIDTH,
    "count": 25,
    "unreadable": 1,
    "places": [PLACE],
    "fingerprint": "s",
    "shard_size": 10,
    "batch_size": 5,
}


@pytest.fixture
def vectors() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((25, WIDTH))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    values[13] = 0
    return values.astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path, vectors: np.ndarray) -> Path:
    """A pool of three shards, the last one short, with one unreadable image."""
    source, first = open_source(PLACE), 0
    for number, size in enumerate(SIZES):
        rows = range(first, first + size)
        bad = [BadFile(13, source.name(13), "cut short")] if 13 in rows else []
        names, uris = [source.name(row) for row in rows], [source.uri(row) for row in rows]
        write_shard(tmp_path / shard_name(number), names, uris, vectors[first : first + size], bad)
        first += size
    shards = [describe_shard(tmp_path / shard_name(number)) for number in range(3)]
    about = ABOUT | {"fingerprint": source.fingerprint, "shards": [shard.model_dump() for shard in shards]}
    write_json(tmp_path / "manifest.json", Manifest.build(about).model_dump(mode="json"))
    return tmp_path


@pytest.mark.parametrize("rows", [1, 4, 10, 4096])
def test_blocks_are_the_vectors_in_order_and_no_larger_than_asked(folder: Path, vectors: np.ndarray, rows: int) -> None:
    found = list(Pool.open(folder, check_hashes=True).blocks(rows=rows))
    assert max(len(block) for _, block in found) <= rows
    assert [first for first, _ in found] == np.cumsum([0, *(len(block) for _, block in found)])[:-1].tolist()
    assert torch.equal(torch.cat([block for _, block in found]), torch.from_numpy(vectors))


def test_blocks_of_chosen_shards_know_their_place_in_the_pool(folder: Path, vectors: np.ndarray) -> None:
    (first, block), (other, last) = Pool.open(folder).blocks(shards=[2, 1])
    assert (first, other) == (20, 10)
    assert np.array_equal(block, vectors[20:])
    assert np.array_equal(last, vectors[10:20])


def test_rows_are_found_in_the_order_asked_for_and_as_often(folder: Path, vectors: np.ndarray) -> None:
    pool, rows = Pool.open(folder), [24, 3, 0, 12, 3]
    assert pool.ids(rows) == [f"playground:4[{row}]" for row in rows]
    assert pool.uris(rows) == [f"playground:4#{row}" for row in rows]
    assert np.array_equal(pool.vectors(rows), vectors[rows])
    assert pool.ids([]) == []
    assert pool.vectors([]).shape == (0, WIDTH)
    with pytest.raises(IndexError, match="the pool has 25"):
        pool.ids([25])
    with pytest.raises(IndexError, match="rows from -1"):
        pool.ids([-1])


def test_other_tools_read_the_columns(folder: Path) -> None:
    schema = pq.read_schema(folder / shard_name(0))
    assert schema.names == ["id", "uri", "embedding"]
    kind = schema.field("embedding").type
    assert (kind.list_size, kind.value_type) == (WIDTH, pa.float16())
    assert schema.field("id").type == pa.string()


def test_unreadable_images_are_told_by_their_shard(folder: Path) -> None:
    assert [len(read_unreadable(folder / shard_name(number))) for number in range(3)] == [0, 1, 0]
    assert read_unreadable(folder / shard_name(1)) == [BadFile(13, "playground:4[13]", "cut short")]
    assert not Pool.open(folder).vectors([13]).any()


def test_the_source_is_opened_only_if_it_is_the_one_that_was_embedded(folder: Path) -> None:
    source = Pool.open(folder).source()
    assert source.name(17) == Pool.open(folder).ids([17])[0]
    change(folder, places=["playground:5?n=25"])
    with pytest.raises(DataError, match=r"playground:5\?n=25: these are 25 other images than the 25 in"):
        Pool.open(folder).source()


def change(folder: Path, **fields: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))


def test_what_is_not_whole_is_refused(folder: Path) -> None:
    shard = folder / shard_name(1)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    Pool.open(folder)  # sizes agree
    with pytest.raises(DataError, match=r"its SHA-256 is .* the manifest says"):
        Pool.open(folder, check_hashes=True)
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"shard-00001.parquet is damaged: it has .* bytes, the manifest says"):
        Pool.open(folder)
    shard.unlink()
    with pytest.raises(DataError, match="it is not there"):
        Pool.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="its shards are not all there: give the same attar embed command again"):
        Pool.open(folder)
    with pytest.raises(DataError, match="give the --out of attar embed"):
        Pool.open(folder.parent)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "is of format 2, this attar reads format 1"),
        ({"count": 26}, "its shards have 25 rows, it says 26"),
        ({"unreadable": 0}, "its shards have 1 unreadable, it says 0"),
        ({"widht": 8}, "unknown setting 'widht'"),
        ({"dtype": "float32"}, "dtype"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(folder: Path, fields: dict, message: str) -> None:
    change(folder, **fields)
    with pytest.raises(DataError, match=message):
        Pool.open(folder)


def test_a_shard_does_not_lead_out_of_the_folder(folder: Path) -> None:
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    change(folder, shards=[shards[0] | {"file": "../shard-00000.parquet"}, *shards[1:]])
    with pytest.raises(DataError, match="is damaged"):
        Pool.open(folder)


def test_equal_rows_give_equal_bytes(tmp_path: Path, vectors: np.ndarray) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, ["x", "y"], ["u", "v"], vectors[:2], [])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_large_shard_is_read_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    rows, width = 40_000, 384  # 31 MB
    names = [str(row) for row in range(rows)]
    write_shard(tmp_path / shard_name(0), names, names, np.ones((rows, width), np.float16), [])
    manifest = {"count": rows, "width": width, "unreadable": 0, "shard_size": rows}
    shard = describe_shard(tmp_path / shard_name(0))
    pool = Pool(tmp_path, Manifest.build(ABOUT | manifest | {"shards": [shard.model_dump()]}))
    before, peak, found = pa.total_allocated_bytes(), 0, 0
    for _, block in pool.blocks():
        peak, found = max(peak, pa.total_allocated_bytes() - before), found + len(block)
    assert found == rows
    assert peak < 12e6


def test_a_pool_that_is_not_there_is_not_called_unfinished(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nope\. Give the --out of attar embed"):
        Pool.open(tmp_path / "nope")
