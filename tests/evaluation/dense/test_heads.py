from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.evaluation.dense.heads import DepthBins
from attar.models.features import map_tokens
from attar.models.pixel_heads import Tap, map_of


def noise(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def test_bins_without_weights_say_their_mean() -> None:
    # (0.001 + 10) / 2: a softmax of zeros says the same, relu of zeros without + 0.1 nothing at all
    head = DepthBins([Tap(4, (2, 2))], nearest=1e-3, farthest=10.0)
    torch.nn.init.zeros_(head.conv.weight)
    torch.nn.init.zeros_(head.conv.bias)
    (depth,) = head([map_tokens(noise(1, 4, 2, 2))])
    torch.testing.assert_close(depth, torch.full((1, 1, 8, 8), 5.0005))


def test_one_loud_bin_is_weighed_against_the_floor_of_all() -> None:
    # (255 bins of 0.1) and one of 25.5 + 0.1: by hand; exp in place of relu would give 10 alone
    head = DepthBins([Tap(4, (2, 2))], nearest=0.0, farthest=10.0)
    torch.nn.init.zeros_(head.conv.weight)
    with torch.no_grad():
        head.conv.bias.zero_()
        head.conv.bias[-1] = 25.6
    (depth,) = head([map_tokens(noise(1, 4, 2, 2))])
    expected = (0.1 * 256 * 5 + 25.6 * 10) / (25.6 + 25.6)
    assert depth[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_enlarging_before_the_layer_would_say_the_same() -> None:
    head = DepthBins([Tap(4, (3, 3))], nearest=1e-3, farthest=10.0)
    tokens = map_tokens(noise(2, 4, 3, 3))
    with_cls = torch.cat([map_of(tokens), tokens.cls[:, :, None, None].expand(-1, -1, 3, 3)], dim=1)
    scores = head.conv(F.interpolate(with_cls, scale_factor=4, mode="bilinear")).relu() + 0.1
    expected = (scores / scores.sum(1, keepdim=True) * head.bins).sum(1, keepdim=True)
    torch.testing.assert_close(head([tokens])[0], expected, rtol=1e-4, atol=1e-4)


def test_the_class_token_matters_to_depth() -> None:
    head, tokens = DepthBins([Tap(4, (2, 2))], nearest=1e-3, farthest=10.0), map_tokens(noise(1, 4, 2, 2))
    other = type(tokens)(tokens.cls + 1, tokens.patch, tokens.grid, tokens.prefix)
    assert not torch.allclose(head([tokens])[0], head([other])[0])
