from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from attar.errors import ConfigError
from attar.evaluation.dense.decoders import Dpt, UPerNet
from attar.models.features import map_tokens
from attar.models.pixel_heads import Tap
from attar.types import Tokens

PLAIN = [Tap(16, (3, 3))] * 4  # an odd grid, as 37 x 37 at 518 px
STAGES = [Tap(8 * 2**stage, (16 // 2**stage, 16 // 2**stage)) for stage in range(4)]


def tokens(taps: list[Tap], batch: int = 2) -> list[Tokens]:
    generator = torch.Generator().manual_seed(0)
    return [map_tokens(torch.randn(batch, tap.width, *tap.grid, generator=generator)) for tap in taps]


@pytest.mark.parametrize(("taps", "size"), [(PLAIN, 12), (STAGES, 16)], ids=["plain", "stages"])
def test_upernet_answers_at_the_size_of_its_first_map(taps: list[Tap], size: int) -> None:
    head = UPerNet(taps, 3, channels=8)
    main, auxiliary = head.train()(tokens(taps))
    assert main.shape == (2, 3, size, size)
    assert auxiliary.shape == (2, 3, *taps[2].grid)
    assert len(head.eval()(tokens(taps))) == 1  # the auxiliary head only helps to learn


@pytest.mark.parametrize(("taps", "size"), [(PLAIN, 16 * 3), (STAGES, 64)], ids=["plain", "stages"])
def test_dpt_covers_the_image_and_stays_in_its_range(taps: list[Tap], size: int) -> None:
    # without the cut a grid of 3 would answer for 4
    (depth,) = Dpt(taps, farthest=3.0).eval()(tokens(taps))
    assert depth.shape == (2, 1, size, size)
    assert depth.min() > 0
    assert depth.max() < 3


def test_a_missing_library_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.decoders.upernet.decoder", None)
    with pytest.raises(ConfigError, match=r'which is not installed .*pip install "\.\[dense\]"'):
        UPerNet(PLAIN, 3, channels=8)


def test_gradient_reaches_every_weight() -> None:
    def idle(head: torch.nn.Module, found: list[Tensor]) -> list[str]:
        sum(x.square().sum() for x in found).backward()
        return [name for name, parameter in head.named_parameters() if parameter.grad is None]

    taps = [Tap(16, (2, 2))] * 4
    for head in (UPerNet(taps, 3, channels=8), Dpt(taps, farthest=3.0)):
        assert idle(head.train(), head(tokens(taps))) == []
