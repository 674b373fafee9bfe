from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attar.data.geometry import Geometry
from attar.errors import DataError
from attar.evaluation.dense.targets import Classes
from attar.evaluation.dense.windows import judge_part, predict
from small_pairs import Drawn, board

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Logits of white and black from each pixel alone, for images of one size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> list[Tensor]:
        assert images.shape[-2:] == (self.size, self.size)
        value = images.float().mean(1) / 255
        return [torch.stack([value, 1 - value], dim=1)]


class FromTheLeft(nn.Module):
    """The column of each pixel in its window."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [torch.arange(images.shape[-1]).float().expand(len(images), 1, *images.shape[-2:])]


def see(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda windows: model(windows)[0]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 70), (33, 100)])
def test_windows_say_what_each_pixel_alone_says(height: int, width: int) -> None:
    # a window that is put back elsewhere, or counted twice, would show
    pair = board(height, width)
    found = predict(see(Brightness(32)), pair.open(), Geometry(32, 21), size=(height, width), device=CPU)
    pixels = torch.from_numpy(pair.pixels).float().mean(2) / 255
    torch.testing.assert_close(found[0, 0], pixels)


def test_an_image_smaller_than_the_window_is_enlarged_and_answered_in_its_size() -> None:
    pair = board(10, 20, cell=10)
    assert predict(see(Brightness(32)), pair.open(), Geometry(32, 21), size=(10, 20), device=CPU).shape == (
        1,
        2,
        10,
        20,
    )
    rows = judge_part(Brightness(32), [pair], Classes(2), Geometry(32, 21), device=CPU, name="images")
    assert rows["miou"][0].sum() == 200
    assert rows["miou"][0].diagonal().sum() > 180


def test_mirrored_predictions_are_mirrored_back() -> None:
    # without the second flip the mean would be the ramp itself, 0 to 31
    pair = board(32, 32)
    found = predict(see(FromTheLeft()), pair.open(), Geometry(32, 32, mirror=True), size=(32, 32), device=CPU)
    torch.testing.assert_close(found, torch.full((1, 1, 32, 32), 15.5))


def test_a_part_in_which_nothing_counts_is_an_error() -> None:
    class Nothing(Classes):
        def rows(self, found: Tensor, target: Tensor) -> None:  # type: ignore[override]
            return None

    pair = Drawn("void", np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255, np.uint8))
    with pytest.raises(DataError, match="none of the 1 test images has a pixel that counts"):
        judge_part(Brightness(32), [pair], Nothing(2), Geometry(32, 32), device=CPU, name="test images")
