from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar.data.labelled import Labelled
from attar.data.sources import open_source
from attar.errors import DataError, Interrupted
from attar.evaluation import embed_labelled
from attar.evaluation.predictions import predict_labelled
from attar.models import Backbone, TaskModel, load_backbone
from attar.utils.signals import polite_stop


def backbone() -> Backbone:
    return load_backbone(
        "vit_tiny_patch16_224?patch_size=8&embed_dim=16&depth=1&num_heads=2", weights="random", img_size=16
    )


def folder(path: Path, *, broken: set[int]) -> Labelled:
    """Six grey images of two classes; labels are 0 and 1 in turn by class folder."""
    for number in range(6):
        file = path / "ab"[number // 3] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (40 * number,) * 3).save(file)
        if number in broken:
            file.write_bytes(b"no image")
    source = open_source(str(path))
    labels, names = source.labels() or (np.zeros(0, np.int64), [])
    return Labelled(source, np.arange(6), labels, tuple(names))


def test_classes_follow_their_images_past_an_unreadable_one(tmp_path: Path) -> None:
    # labels taken by count and not by position would be shifted by one from the broken image on
    images = folder(tmp_path, broken={1})
    features, labels = embed_labelled(backbone(), images)
    assert labels.tolist() == [0, 0, 1, 1, 1]
    alone = [embed_labelled(backbone(), images.take(np.array([row])))[0] for row in (0, 2, 3, 4, 5)]
    torch.testing.assert_close(features, torch.cat(alone))


def test_rows_may_come_in_any_order(tmp_path: Path) -> None:
    images = folder(tmp_path, broken=set())
    features, labels = embed_labelled(backbone(), images)
    order = np.array([5, 0, 3])
    some, their_labels = embed_labelled(backbone(), images.take(order))
    torch.testing.assert_close(some, features[order])
    assert their_labels.tolist() == labels[order].tolist()


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the 6 test images can be read"):
        embed_labelled(backbone(), folder(tmp_path, broken=set(range(6))), name="test images")


def test_a_stop_says_what_was_done_with_which_images(tmp_path: Path) -> None:
    images = folder(tmp_path, broken=set())
    model = TaskModel.classifier(backbone(), images.class_names)
    with polite_stop():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM while embedding test images"):
            embed_labelled(model.backbone, images, name="test images")
        with pytest.raises(Interrupted, match="stopped by SIGTERM while judging val images"):
            predict_labelled(model, images, name="val images")
