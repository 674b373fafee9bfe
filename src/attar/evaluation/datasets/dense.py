"""Segmentation and depth (spec evaluation §1.5, §1.6, §2.4)."""

from __future__ import annotations

from attar.evaluation.datasets.dataset import Count, Dataset
from attar.evaluation.datasets.layouts import Pairs

ROWS = (
    Dataset(
        name="ade20k",
        title="ADE20K, scene parsing",
        kind="segmentation",
        num_classes=150,
        metrics=("miou",),
        splits={"train": Count(20_210), "test": Count(2000)},
        layout=Pairs({"train": "training", "test": "validation"}),
        folders=("ADEChallengeData2016",),
        how_to_get="Unpack ADEChallengeData2016.zip of MIT.",
        licence_note="BSD-3-Clause for annotations; images for research and education.",
        sources=("[P-code]", "[D3-code]"),
        first_class=1,
        note="Annotations are 0 to 150; 0 is void, so classes are counted from 1. Test is the official validation set.",
    ),
    Dataset(
        name="nyuv2",
        title="NYU Depth V2",
        kind="depth",
        num_classes=0,
        metrics=("rmse",),
        splits={"train": Count(24_231), "test": Count(654, is_soft=True)},
        layout=Pairs({"train": "train", "test": "test"}),
        folders=("nyu",),
        how_to_get="images and annotations in mmsegmentation's layout; depth as 16-bit PNG.",
        licence_note="No licence is stated; research.",
        sources=("[P-code]", "[D2-paper]", "test count [GK]"),
        note="Depth in millimetres, 480 x 640; the Eigen crop is judged.",
    ),
    Dataset(
        name="camvid",
        title="CamVid",
        kind="segmentation",
        num_classes=11,
        metrics=("miou",),
        splits={
            "train": Count(367, is_soft=True),
            "val": Count(101, is_soft=True),
            "test": Count(233, is_soft=True),
        },
        layout=Pairs({"train": "train", "val": "val", "test": "test"}),
        folders=("camvid",),
        how_to_get="images/SPLIT and annotations/SPLIT, 11 classes as in SegNet's tutorial.",
        licence_note="Research only.",
        sources=("[GK]",),
        has_paper_val=True,
        note="Number 11 is void.",
    ),
)
