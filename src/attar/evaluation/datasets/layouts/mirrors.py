"""Two layouts that any data set may come in: CLIP_benchmark's WebDataset mirrors, and Hugging Face's Parquet files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from attar.data.files import File
from attar.data.labelled import Labelled
from attar.data.sources import ParquetSource, Source, TarSource
from attar.errors import DataError
from attar.evaluation.datasets.layouts.reading import lines_of


@dataclass(frozen=True)
class WebDataset:
    """`SPLIT/*.tar` of `KEY.jpg` and `KEY.cls`, and `classnames.txt`, whose lines are prompt names by label."""

    def read(self, folder: Path, split: str) -> Labelled:
        """Images in the order of the shards."""
        shards = sorted((folder / split).glob("*.tar"), key=_by_number)
        if not shards:
            raise DataError(
                f"{folder / split} holds no .tar files. Most mirrors have train and test only: for another split take"
                " the official archive."
            )
        names = [line.strip() for line in lines_of(folder / "classnames.txt")]
        return _with_numbers(TarSource([File(str(path)) for path in shards]), names, where=folder / split)


@dataclass(frozen=True)
class Parquet:
    """`SPLIT*.parquet`, there or in `data`, with the columns `image` and `label`; class names from the schema, if any.

    Attributes:
        validation_is_test: Whether `val*` are the images of test where there are no `test*`, as for ImageNet.
    """

    validation_is_test: bool = False

    def read(self, folder: Path, split: str) -> Labelled:
        """Images in the order of the sorted files."""
        files = parquet_files(folder, split)
        if not files and split == "test" and self.validation_is_test:
            files = parquet_files(folder, "val")
        if not files:
            raise DataError(f"{folder} holds no {split}*.parquet. Put the files of that split there.")
        source = ParquetSource([File(str(path)) for path in files])
        return _with_numbers(source, _names_in_schema(files[0]), where=files[0])


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Sorted Parquet files of a split, directly in the folder or in `data` below it."""
    pattern = f"{split}*.parquet"
    return sorted(folder.glob(pattern)) or sorted((folder / "data").glob(pattern))


def _by_number(path: Path) -> tuple[int, str]:
    """0.tar, 1.tar, …, 10.tar in the order they were written."""
    return len(path.name), path.name


def _with_numbers(source: Source, class_names: list[str] | None, *, where: Path) -> Labelled:
    """Labels by their own numbers: a class without an image in this split keeps its number."""
    found = source.labels()
    if found is None:
        raise DataError(f"{where} holds images without labels. A column 'label', or .cls members, are due.")
    labels, values = found
    if all(value.isdecimal() for value in values):
        labels = np.array([int(value) for value in values], dtype=np.int64)[labels]
        values = class_names or [str(number) for number in range(int(labels.max()) + 1)]
    if labels.max() >= len(values):
        raise DataError(f"{where} has the label {labels.max()}, but there are {len(values)} class names.")
    return Labelled(source, np.arange(len(source), dtype=np.int64), labels, tuple(values))


def _names_in_schema(path: Path) -> list[str] | None:
    about = (pq.read_schema(path).metadata or {}).get(b"huggingface")
    features = json.loads(about).get("info", {}).get("features", {}) if about else {}
    names = features.get("label", {}).get("names")
    return None if names is None else [str(name) for name in names]
