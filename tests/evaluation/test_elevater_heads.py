"""Stacked heads are what torch.optim.SGD makes of each alone, with weight decay, for both losses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attar.evaluation.elevater_heads import DecayedHeads


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_each_head_is_trained_as_by_torchs_sgd_alone(is_multi_label: bool) -> None:
    """Decay added to the weights in place of the gradient, or a summed binary loss, would give others."""
    generator = torch.Generator().manual_seed(0)
    features, start = torch.randn(5, 8, 6, generator=generator), torch.randn(3, 6, generator=generator)
    targets = torch.randint(3, (5, 8), generator=generator)
    if is_multi_label:
        targets = F.one_hot(targets, 3)
    rates, decays = [0.1, 0.01], [0.001, 0.5]
    heads = DecayedHeads(start, rates, decays, is_multi_label=is_multi_label)
    for batch, wanted in zip(features, targets, strict=True):
        heads.step(batch, wanted)
    for number, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        alone = nn.Linear(6, 3)
        alone.weight.data, alone.bias.data = start.clone(), torch.zeros(3)
        optimiser = torch.optim.SGD(alone.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
        for batch, wanted in zip(features, targets, strict=True):
            optimiser.zero_grad()
            logits = alone(batch)
            loss = F.binary_cross_entropy_with_logits(logits, wanted.float()) if is_multi_label else None
            (F.cross_entropy(logits, wanted) if loss is None else loss).backward()
            optimiser.step()
        torch.testing.assert_close(heads.weight[number], alone.weight.data)
        torch.testing.assert_close(heads.bias[number], alone.bias.data)
        torch.testing.assert_close(heads.logits_of(number, features[0]), alone(features[0]).detach())


def test_a_head_that_diverges_leaves_the_others_alone() -> None:
    features, targets = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    alone = DecayedHeads(torch.ones(3, 6), [0.1], [0.0], is_multi_label=False)
    both = DecayedHeads(torch.ones(3, 6), [0.1, 0.1], [0.0, 1e6], is_multi_label=False)
    for _ in range(20):
        alone.step(features, targets)
        both.step(features, targets)
    assert not both.weight[1].isfinite().all()
    torch.testing.assert_close(both.weight[0], alone.weight[0])
