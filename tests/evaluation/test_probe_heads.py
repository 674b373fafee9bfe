from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attar.evaluation.probe_heads import ProbeHeads

WIDTH, CLASSES = 6, 4


def heads(rates: list[float], *, dtype: torch.dtype = torch.float64, name: str = "blocks=1") -> ProbeHeads:
    return ProbeHeads(WIDTH, CLASSES, rates, seed=0, name=name, dtype=dtype)


def batches(steps: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, WIDTH, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(steps)
    ]


def test_logits_are_those_of_each_head() -> None:
    some = heads([0.1, 0.2, 0.3])
    some.bias.normal_()
    x = batches(1)[0][0]
    expected = torch.stack([F.linear(x, w, b).T for w, b in zip(some.weight, some.bias, strict=True)])
    torch.testing.assert_close(some.logits(x), expected)


def test_starts_are_small_and_each_heads_own() -> None:
    some = ProbeHeads(500, 40, [0.1, 0.2], seed=0, name="blocks=4")
    assert some.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not torch.equal(some.weight[0], some.weight[1])
    assert not some.bias.any()
    assert not torch.equal(heads([0.1]).weight, heads([0.1], name="blocks=4").weight)


def test_a_head_is_the_same_in_any_company() -> None:
    # catches a learning rate that reaches the neighbour, a loss that is a mean over heads, and a shared start
    many, other, alone = heads([0.1, 0.5, 0.02]), heads([0.1, 300.0, 0.02]), heads([0.1])
    for x, y in batches(30):
        for some in (many, other, alone):
            some.step(x, y, factor=0.7)
    torch.testing.assert_close(many.weight[0], alone.weight[0], rtol=0, atol=1e-12)
    assert torch.equal(many.weight[[0, 2]], other.weight[[0, 2]])
    assert not torch.equal(many.weight[1], other.weight[1])


def test_a_head_that_is_lost_takes_no_other_with_it() -> None:
    some, alone = heads([0.1, float("inf")]), heads([0.1])
    for x, y in batches(5):
        some.step(x, y, factor=1.0)
        alone.step(x, y, factor=1.0)
    assert not some.weight[1].isfinite().any()
    torch.testing.assert_close(some.weight[0], alone.weight[0], rtol=0, atol=1e-12)


def test_what_was_saved_goes_on_the_same() -> None:
    # without the velocity the second half would differ
    some, other = heads([0.1, 0.5]), heads([0.1, 0.5])
    for number, (x, y) in enumerate(batches(10)):
        some.step(x, y, factor=1.0)
        if number == 4:
            other.load({name: tensor.clone() for name, tensor in some.tensors().items()})
        elif number > 4:
            other.step(x, y, factor=1.0)
    assert torch.equal(some.weight, other.weight)
    assert torch.equal(some.bias, other.bias)
