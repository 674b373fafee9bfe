"""Data sets by name: found below a folder, opened, counted."""

from __future__ import annotations

import struct
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from attar.data.files import local_path
from attar.data.labelled import Labelled
from attar.data.listed import ListedFiles
from attar.data.pairs import Annotated
from attar.errors import ConfigError, DataError, MissingDatasetError
from attar.evaluation.datasets.catalogue import find_dataset
from attar.evaluation.datasets.dataset import Dataset, Layout, PairLayout
from attar.evaluation.datasets.layouts import ObjectNet, Parquet, WebDataset, imagenet_wnids
from attar.evaluation.datasets.layouts.mirrors import parquet_files
from attar.evaluation.datasets.splits import first_fifth_of_each_class, shuffled_fifth

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class OpenedSplit(Labelled):
    """Labelled images of a data set of the table.

    Attributes:
        dataset: Its row.
        split: Which split it is.
        folder: Where it was found.
        warnings: What to tell the user: counts that general knowledge has otherwise.
    """

    dataset: Dataset
    split: str
    folder: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenedPairs:
    """Images with annotations of a dense data set; see `OpenedSplit`."""

    pairs: list[Annotated]
    dataset: Dataset
    split: str
    folder: Path
    warnings: tuple[str, ...] = ()


def open_dataset(name: str | Dataset, data_root: str | Path, split: str) -> OpenedSplit:
    """Labelled images of a data set's split, checked against the table. Nothing is ever downloaded.

    Args:
        name: Of a row, or a row itself.
        data_root: Folder that the data sets lie in.
        split: One of the row's splits.

    Returns:
        Images in the order of the official files. Labels are (n,), or (n, K) zeros and ones for several classes.

    Raises:
        ConfigError: If there is no such data set or split, or it has annotations in place of labels.
        MissingDatasetError: If its folder is not there; the message tells how to get it.
        DataError: If it is there, and a file, a count or a label is wrong.

    Example:
        >>> cub = open_dataset("cub200", "~/data", "test")   # doctest: +SKIP
        >>> len(cub), cub.class_names[0], cub.dataset.metric   # doctest: +SKIP
        (5794, '001.Black_footed_Albatross', 'top1')
    """
    dataset = name if isinstance(name, Dataset) else find_dataset(name)
    dataset.count(split)
    if dataset.kind != "classification":
        raise ConfigError(f"{dataset.name} has annotations in place of labels. Use open_pairs('{dataset.name}', …).")
    folder, layout = _locate(dataset, data_root)
    found = _read(cast(Layout, layout), folder, split)
    _check_classes(dataset, found, folder)
    _check_files(found)
    warnings = _check_count(dataset, split, found, folder)
    return OpenedSplit(found.source, found.rows, found.labels, found.class_names, dataset, split, folder, warnings)


def open_training(
    name: str | Dataset, data_root: str | Path, *, rule: Literal["paper", "elevater"] = "paper"
) -> tuple[Labelled, Labelled]:
    """(train, val) of a data set: what is learned from, and what is chosen on. Both together are what is refitted on.

    Args:
        name: Of a row, or a row itself.
        data_root: Folder that the data sets lie in.
        rule: `paper`: the `val` split where the papers use it, else the first fifth of `train` shuffled by NumPy's seed
            0; `elevater`: the first fifth of each class of `train` in file order, whatever `val` there is.

    Raises:
        ConfigError: If it has no train split, as the shifted sets.
        DataError: As `open_dataset`.
    """
    train = open_dataset(name, data_root, "train")
    if rule == "paper" and train.dataset.has_paper_val:
        return train, open_dataset(train.dataset, data_root, "val")
    chosen = first_fifth_of_each_class(train.labels) if rule == "elevater" else shuffled_fifth(len(train))
    return train.take(chosen[0]), train.take(chosen[1])


def open_pairs(name: str | Dataset, data_root: str | Path, split: str) -> OpenedPairs:
    """Images with annotations of a dense data set's split, checked against the table.

    Raises:
        ConfigError: If there is no such data set or split, or it has labels in place of annotations.
        MissingDatasetError: If its folder is not there; the message tells how to get it.
        DataError: If it is there, and a file or a count is wrong.
    """
    dataset = name if isinstance(name, Dataset) else find_dataset(name)
    dataset.count(split)
    if dataset.kind == "classification":
        raise ConfigError(f"{dataset.name} has labels and no annotations. Use open_dataset('{dataset.name}', …).")
    folder, layout = _locate(dataset, data_root)
    found = cast(PairLayout, layout).pairs(folder, split)
    return OpenedPairs(found, dataset, split, folder, _check_count(dataset, split, found, folder))


def imagenet_indices(name: str, data_root: str | Path) -> tuple[tuple[int, ...], ...]:
    """For each class of a shifted set, by label, the classes of a 1,000-way ImageNet head that it stands for.

    One each, but for ObjectNet, whose 113 classes stand for 125: there the largest logit counts (spec §1.7).

    Raises:
        ConfigError: If its classes are not ImageNet's.
        DataError: If ObjectNet's `mappings` are not there.
    """
    dataset = find_dataset(name)
    if isinstance(dataset.layout, ObjectNet):
        return dataset.layout.indices(_locate(dataset, data_root)[0])
    if dataset.names != "imagenet":
        raise ConfigError(f"the classes of {name} are not ImageNet's, so an ImageNet head says nothing of them.")
    ranks = {wnid: rank for rank, wnid in enumerate(imagenet_wnids())}
    wnids = {"imagenet-a": imagenet_wnids("a"), "imagenet-r": imagenet_wnids("r")}.get(name, imagenet_wnids())
    return tuple((ranks[wnid],) for wnid in wnids)


def locate(dataset: Dataset, data_root: str | Path) -> Path:
    """The folder that a data set lies in.

    Raises:
        MissingDatasetError: If there is none; the message tells where it is expected and how to get it.
    """
    return _locate(dataset, data_root)[0]


def _locate(dataset: Dataset, data_root: str | Path) -> tuple[Path, Layout | PairLayout]:
    """(folder, how files lie in it): Parquet files named for the row, official folders, WebDataset mirrors."""
    root = local_path(data_root)
    can_be_mirror = dataset.kind == "classification" and not dataset.is_multi_label
    if can_be_mirror and any(parquet_files(root / dataset.name, split) for split in _SPLITS):
        return root / dataset.name, Parquet(validation_is_test="val" not in dataset.splits)
    for folder in dataset.folders:
        if (root / folder).is_dir() and (root / folder / dataset.marker).exists():
            return root / folder, dataset.layout
    for mirror in dataset.mirrors if can_be_mirror else ():
        if (root / f"wds_{mirror}").is_dir():
            return root / f"wds_{mirror}", WebDataset()
    marker = f" with {dataset.marker}" if dataset.marker else ""
    raise MissingDatasetError(
        f"{dataset.title} is not below {root}: there is no folder {dataset.folders[0]}{marker}."
        f" {dataset.how_to_get} {dataset.licence_note}"
    )


def _read(layout: Layout, folder: Path, split: str) -> Labelled:
    try:
        return layout.read(folder, split)
    except (ValueError, struct.error) as error:  # of JSON, numbers and text that are none
        raise DataError(f"{folder}: a file of {split} is damaged ({error}). Unpack the archive once more.") from None


def _check_classes(dataset: Dataset, found: Labelled, folder: Path) -> None:
    if len(found.class_names) != dataset.num_classes:
        raise DataError(
            f"{folder} has {len(found.class_names):,} classes; {dataset.title} has {dataset.num_classes:,}."
            f" {dataset.note}".rstrip()
        )


def _check_files(found: Labelled) -> None:
    """The first and the last image are there: to look at all would take minutes for a million."""
    if not isinstance(found.source, ListedFiles):
        return
    for row in (int(found.rows[0]), int(found.rows[-1])):
        if not Path(found.source.file(row).address).is_file():
            raise DataError(f"{found.source.file(row)} does not exist, though it is listed. Unpack the images there.")


def _check_count(dataset: Dataset, split: str, found: Sized, folder: Path) -> tuple[str, ...]:
    expected, images = dataset.count(split), len(found)
    if expected.allows(images):
        return ()
    like = next((other for other, count in dataset.splits.items() if other != split and count.allows(images)), None)
    swapped = f" That is the number of {like}: the two seem to be swapped in this copy." if like else ""
    message = (
        f"{folder}: {split} has {images:,} images; {dataset.title} has {expected.images:,}.{swapped}"
        " Unpack it once more, or get another copy."
    )
    if expected.is_soft and not swapped:
        return (message,)
    raise DataError(message)
