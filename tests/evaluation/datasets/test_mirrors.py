"""WebDataset mirrors and Parquet files in place of the official layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from attar.errors import DataError
from attar.evaluation.datasets import Dataset, find_dataset, open_dataset, prompt_names
from miniatures import JPEG, MINIATURES, write_lines
from shards import sample, write_tar

NAMES = ("pink primrose", "daffodil", "lotus", "rose")


def row(**counts: int) -> Dataset:
    return find_dataset("flowers102").with_counts(num_classes=4, **counts)


def write_mirror(root: Path) -> Path:
    """Classes 3 and 1 only, in shards that sort wrongly as text."""
    folder = root / "wds_vtab-flowers"
    for number, label in ((0, 3), (2, 1), (10, 3)):
        write_tar(folder / "test" / f"{number}.tar", sample(f"s{number:07}", label, JPEG))
    write_lines(folder / "test/nshards.txt", ["3"])
    write_lines(folder / "classnames.txt", list(NAMES))
    return folder


def test_a_mirrors_labels_keep_their_numbers(tmp_path: Path) -> None:
    # ranks among the labels that occur would be 1, 0, 1; shards sorted as text would stand 0, 10, 2
    folder = write_mirror(tmp_path)
    found = open_dataset(row(test=3), tmp_path, "test")
    assert (found.labels.tolist(), found.class_names, found.folder) == ([3, 1, 3], NAMES, folder)
    assert [found.source.name(number).split("/")[0] for number in range(3)] == ["0.tar", "2.tar", "10.tar"]
    assert prompt_names(find_dataset("flowers102"), ["pink primrose"]) == ("pink primrose",)


def test_a_mirror_that_lacks_a_split_or_a_name_says_so(tmp_path: Path) -> None:
    folder = write_mirror(tmp_path)
    with pytest.raises(DataError, match=r"wds_vtab-flowers.val holds no \.tar files"):
        open_dataset(row(val=3), tmp_path, "val")
    write_lines(folder / "classnames.txt", list(NAMES[:3]))
    with pytest.raises(DataError, match="label 3, but there are 3 class names"):
        open_dataset(row(test=3), tmp_path, "test")


def test_the_official_layout_goes_before_a_mirror(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    mini = MINIATURES["flowers102"]
    mini.make(tmp_path, mini)
    assert open_dataset(mini.row("flowers102"), tmp_path, "test").folder == tmp_path / "flowers-102"


def write_parquet(path: Path, labels: list[int] | list[str], names: tuple[str, ...] | None = None) -> None:
    table = pa.table({"image": [{"bytes": JPEG, "path": None}] * len(labels), "label": labels})
    if names is not None:
        about = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.mark.parametrize("folder", ["flowers102", "flowers102/data"])
def test_parquet_takes_its_names_from_the_schema(tmp_path: Path, folder: str) -> None:
    write_parquet(tmp_path / folder / "test-00000-of-00001.parquet", [3, 1, 3], NAMES)
    found = open_dataset(row(test=3), tmp_path, "test")
    assert (found.labels.tolist(), found.class_names) == ([3, 1, 3], NAMES)


def test_parquet_without_names_has_numbers_and_with_text_has_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "flowers102/test.parquet", [3, 1])
    assert open_dataset(row(test=2), tmp_path, "test").class_names == ("0", "1", "2", "3")
    write_parquet(tmp_path / "flowers102/validation.parquet", ["d", "c", "b", "a"])
    found = open_dataset(row(val=4), tmp_path, "val")
    assert (found.labels.tolist(), found.class_names) == ([3, 2, 1, 0], ("a", "b", "c", "d"))


def test_validation_files_are_test_only_where_there_is_no_other_val(tmp_path: Path) -> None:
    for name in ("food101", "flowers102"):
        write_parquet(tmp_path / name / "validation.parquet", [0, 1, 2, 3], NAMES)
    food = dataclasses.replace(find_dataset("food101"), num_classes=4).with_counts(test=4)
    assert len(open_dataset(food, tmp_path, "test")) == 4
    with pytest.raises(DataError, match=r"holds no test\*\.parquet"):
        open_dataset(row(test=4), tmp_path, "test")


def test_parquet_without_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flowers102/test.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"image": [JPEG]}), path)
    with pytest.raises(DataError, match="images without labels"):
        open_dataset(row(test=1), tmp_path, "test")
