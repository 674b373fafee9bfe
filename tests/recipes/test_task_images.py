"""Labelled images of a task in parts, and who made the parts."""

from __future__ import annotations

from attar.config import TransferConfig
from attar.recipes.task_images import open_task_images


def origin_of(labels_per_class: int) -> str:
    return open_task_images(
        TransferConfig(
            teacher="resnet18",
            student="resnet10t",
            labelled="playground:1?n=60",  # four or five of each of 14 classes
            pool=("playground:2?n=20",),
            labels_per_class=labels_per_class,
            out="out",
        )
    ).origin


def test_classes_that_have_fewer_than_the_draw_are_told():
    assert origin_of(4).startswith("train: 4 images of each class by seed 0; val: 1 of these 4 of each class, which")
    assert "5 images of each class by seed 0, of 10 of 14 classes all they have, which is fewer" in origin_of(5)
    assert "500 images of each class by seed 0, of 14 of 14 classes all they have" in origin_of(500)
