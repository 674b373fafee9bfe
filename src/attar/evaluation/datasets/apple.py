"""Data sets of Apple's task-oriented transfer, by its lists (spec evaluation §2.5)."""

from __future__ import annotations

from attar.evaluation.datasets.dataset import Count, Dataset
from attar.evaluation.datasets.layouts import Lists, Pairs

_LINE = r"(?P<path>[^,]+),(?P<label>.+)"
_PLACES = {
    "train": "train_full.txt",
    "train_50": "train_50img_per_class.txt",
    "train_250": "train_250img_per_class.txt",
    "train_1000": "train_1000img_per_class.txt",
    "val": "val.txt",
    "test": "test.txt",
}
_EUROSAT = {
    "train": "train_full.txt",
    "train_5": "train_5img_per_class.txt",
    "train_10": "train_10img_per_class.txt",
    "train_25": "train_25img_per_class.txt",
    "val": "val.txt",
    "test": "test.txt",
}
_HAM10K = {
    "train": "train_full.txt",
    "train_100": "train_100img_max_per_class.txt",
    "train_250": "train_250img_max_per_class.txt",
    "train_500": "train_500img_max_per_class.txt",
    "train_1000": "train_1000img_max_per_class.txt",
    "val": "val.txt",
    "test": "test.txt",
}
_IMAGENET = {
    "train": "train_full.txt",
    "train_1": "train_1percent.txt",
    "train_10": "train_10percent.txt",
    "train_25": "train_25percent.txt",
    "train_50": "train_50percent.txt",
    "test": "val.txt",
}
_ADE20K = {
    "train": "train_full.txt",
    "train_1200": "train_1200img.txt",
    "train_2401": "train_2401img.txt",
    "train_4802": "train_4802img.txt",
    "train_9605": "train_9605img.txt",
    "val": "val.txt",
    "test": "test.txt",
}


def _places(lists: dict[str, str], train: str, val: str, test: str) -> dict[str, str]:
    """Where the images of each list lie."""
    return {split: {"val": val, "test": test}.get(split, train) for split in lists}


def _lists_of(folder: str) -> str:
    return f"Copy the lists of datasplits/{folder} in apple/ml-vfm-kt beside the images"


ROWS = (
    Dataset(
        name="places365_apple",
        title="Places365, Apple's split",
        num_classes=365,
        metrics=("top1",),
        splits={
            "train": Count(1_803_460),
            "train_50": Count(18_250),
            "train_250": Count(91_250),
            "train_1000": Count(365_000),
            "val": Count(3650),
            "test": Count(32_850),
        },
        layout=Lists(_PLACES, _LINE, _places(_PLACES, "train/{label}/{path}", "val/{path}", "val/{path}")),
        folders=("places365",),
        how_to_get=f"{_lists_of('Places365')}: train/LABEL/FILE with labels as in the lists, and val/FILE.",
        licence_note="CC BY for annotations; images for research and education.",
        sources=("[VFMKT]",),
        has_paper_val=True,
        note="Val and test are both cut from the official validation set.",
    ),
    Dataset(
        name="eurosat_apple",
        title="EuroSAT, Apple's split",
        num_classes=10,
        metrics=("top1",),
        splits={
            "train": Count(2700),
            "train_5": Count(50),
            "train_10": Count(100),
            "train_25": Count(250),
            "val": Count(5400),
            "test": Count(18_900),
        },
        layout=Lists(_EUROSAT, _LINE, "2750/{label}/{path}"),
        folders=("EuroSAT",),
        how_to_get=f"Unpack EuroSAT.zip (2750/CLASS). {_lists_of('EuroSAT')}.",
        licence_note="MIT.",
        sources=("[VFMKT]",),
        has_paper_val=True,
        names="eurosat",
    ),
    Dataset(
        name="ham10k_apple",
        title="HAM10000, Apple's split",
        num_classes=7,
        metrics=("top1", "mean_per_class"),
        splits={
            "train": Count(10_015),
            "train_100": Count(700),
            "train_250": Count(1507),
            "train_500": Count(2584),
            "train_1000": Count(4098),
            "val": Count(193),
            "test": Count(1512),
        },
        layout=Lists(
            _HAM10K,
            _LINE,
            _places(_HAM10K, *(f"ISIC2018_Task3_{part}_Input/{{path}}" for part in ("Training", "Validation", "Test"))),
        ),
        folders=("HAM10K",),
        how_to_get=f"Unpack the images of ISIC 2018, task 3. {_lists_of('HAM10K')}.",
        licence_note="CC BY-NC 4.0.",
        sources=("[VFMKT]", "image folders [GK]"),
        has_paper_val=True,
        note="Which of the two averages the paper reports is unconfirmed.",
    ),
    Dataset(
        name="imagenet_apple",
        title="ImageNet-1k, Apple's shares",
        num_classes=1000,
        metrics=("top1",),
        splits={
            "train": Count(1_281_167),
            "train_1": Count(12_811),
            "train_10": Count(128_116),
            "train_25": Count(320_255),
            "train_50": Count(640_557),
            "test": Count(50_000),
        },
        layout=Lists(_IMAGENET, _LINE, _places(_IMAGENET, "train/{label}/{path}", "", "val/{label}/{path}")),
        folders=("imagenet",),
        marker="val.txt",
        how_to_get=f"As imagenet. {_lists_of('ImageNet')}.",
        licence_note="Non-commercial research, terms to be accepted by you.",
        sources=("[VFMKT]",),
        names="imagenet",
        note="Numbers after train_ are per cent; there is no val.",
    ),
    Dataset(
        name="ade20k_apple",
        title="ADE20K, Apple's split",
        kind="segmentation",
        num_classes=150,
        metrics=("miou",),
        splits={
            "train": Count(19_210),
            "train_1200": Count(1200),
            "train_2401": Count(2401),
            "train_4802": Count(4802),
            "train_9605": Count(9605),
            "val": Count(1000, others=(713,)),
            "test": Count(2000),
        },
        layout=Pairs(_places(_ADE20K, "training", "training", "validation"), _ADE20K),
        folders=("ADEChallengeData2016",),
        marker="val.txt",
        how_to_get=f"As ade20k. {_lists_of('ADE20K')}.",
        licence_note="BSD-3-Clause for annotations; images for research and education.",
        sources=("[VFMKT]",),
        has_paper_val=True,
        first_class=1,
        note="Number 0 is void. An older list of val has 713 images.",
    ),
)
