from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attar.models.features import map_tokens
from attar.models.pixel_heads import DeepLab, PixelClassifier, Tap, map_of, side_by_side


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_a_map_is_its_tokens_row_by_row() -> None:
    image = noise(2, 3, 4, 5)
    assert torch.equal(map_of(map_tokens(image)), image)


def test_maps_stand_side_by_side_in_the_size_of_the_first() -> None:
    large, small = noise(1, 2, 8, 8), noise(1, 3, 4, 4)
    found = side_by_side([map_tokens(large), map_tokens(small)])
    assert torch.equal(found[:, :2], large)
    torch.testing.assert_close(found[:, 2:], F.interpolate(small, size=(8, 8), mode="bilinear"))


def test_a_linear_head_is_one_layer() -> None:
    head = PixelClassifier(5, 3)
    image = noise(2, 5, 4, 4)
    (found,) = head([map_tokens(image)])
    expected = torch.einsum("bdhw,kd->bkhw", image, head.conv.weight[:, :, 0, 0]) + head.conv.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(found, expected)


def test_deeplab_dilates_as_the_paper_does_in_pixels() -> None:
    def rates(stride: int) -> list[int]:
        head = DeepLab(Tap(8, (4, 4)), 3, stride=stride)
        return [m.dilation[0] for m in head.modules() if isinstance(m, torch.nn.Conv2d) and m.dilation[0] > 1]

    assert rates(8) == [12, 24, 36]
    assert rates(16) == [6, 12, 18]
    assert DeepLab(Tap(8, (4, 4)), 3, stride=32).eval()([map_tokens(noise(2, 8, 4, 4))])[0].shape == (2, 3, 4, 4)


def test_gradient_reaches_every_weight_of_deeplab() -> None:
    head = DeepLab(Tap(16, (2, 2)), 3, stride=16).train()
    head([map_tokens(noise(2, 16, 2, 2))])[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
