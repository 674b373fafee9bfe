from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from attar.errors import ShapeError
from attar.evaluation.probe_features import LAYOUTS, Layout, ProbeFeatures


def numbered(*, views: int = 2, images: int = 3, blocks: int = 4, width: int = 2) -> ProbeFeatures:
    """Each value says view, image, block (5 for the mean patch) and channel by its digits."""

    def digits(*sizes: int) -> torch.Tensor:
        grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        return sum((axis + 1.0) * 10 ** (3 - place) for place, axis in enumerate(grid))  # type: ignore[return-value]

    patch = digits(views, images, 1, width)[:, :, 0] + 40
    return ProbeFeatures(digits(views, images, blocks, width), patch, torch.zeros(images, dtype=torch.int64))


def test_a_vit_s_gives_heads_of_384_768_1536_and_1920_channels() -> None:
    # oracle 6.11 of the Proteus spec: D, 2D, 4D, 5D; the mean patch token is of the last block alone, so 8D is wrong
    features = ProbeFeatures(torch.zeros(1, 1, 4, 384), torch.zeros(1, 1, 384), torch.zeros(1))
    assert [features.width(layout) for layout in LAYOUTS] == [384, 768, 1536, 1920]
    assert features.layouts == LAYOUTS


def test_blocks_stand_from_the_earliest_to_the_last_with_the_mean_patch_behind() -> None:
    features = numbered()
    row = features.rows(np.array([2]), view=1)[0]
    read = {str(layout): row[features.columns(layout)].tolist() for layout in LAYOUTS}
    assert read == {
        "blocks=1": [2341, 2342],
        "blocks=1 avgpool": [2341, 2342, 2351, 2352],
        "blocks=4": [2311, 2312, 2321, 2322, 2331, 2332, 2341, 2342],
        "blocks=4 avgpool": [2311, 2312, 2321, 2322, 2331, 2332, 2341, 2342, 2351, 2352],
    }


def test_without_four_blocks_or_patches_there_are_fewer_layouts() -> None:
    everything = numbered()
    for blocks in (1, 3):
        some = replace(everything, cls=everything.cls[:, :, -blocks:])
        assert some.layouts == (Layout(1, False), Layout(1, True))
        assert torch.equal(some.rows(np.arange(3)), everything.rows(np.arange(3))[:, -4:])
    no_patches = replace(everything, mean_patch=None)
    assert no_patches.layouts == (Layout(1, False), Layout(4, False))
    assert no_patches.rows(np.arange(3)).shape == (3, 8)


def test_of_more_than_four_blocks_the_last_four_are_read() -> None:
    six = numbered(blocks=6)
    row = six.rows(np.array([0]))[0]
    assert row[six.columns(Layout(4, False))].tolist() == [1131, 1132, 1141, 1142, 1151, 1152, 1161, 1162]
    assert row[six.columns(Layout(1, False))].tolist() == [1161, 1162]


def test_memory_maps_in_half_precision_are_read(tmp_path: Path) -> None:
    features = numbered()
    for name, tensor in (("cls", features.cls), ("patch", features.mean_patch)):
        np.save(tmp_path / f"{name}.npy", np.asarray(tensor, dtype=np.float16))
    cls, patch = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("cls", "patch"))
    stored = ProbeFeatures(cls, patch, features.labels)
    rows = np.array([2, 0])
    expected = features.rows(rows, view=1).half()
    assert torch.equal(stored.rows(rows, view=1), expected)


def test_sizes_that_disagree_are_an_error() -> None:
    features = numbered()
    with pytest.raises(ShapeError, match="4 labels for class tokens of 3 images in 2 views"):
        replace(features, labels=torch.zeros(4))
    with pytest.raises(ShapeError, match=r"they must be \(2, 3, 2\)"):
        replace(features, mean_patch=torch.zeros(1, 3, 2))
