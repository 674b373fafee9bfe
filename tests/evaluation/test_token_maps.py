"""Colours of patch tokens: strongest components first, one scale for teacher and student, a map that holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attar.evaluation.token_maps import ColourBasis, fit_map


def tokens(count: int = 400, width: int = 6, seed: int = 0) -> torch.Tensor:
    """(n, D), channel 2 varying most, then 0, then 5; the others hardly."""
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return values * torch.tensor([3.0, 0.01, 9.0, 0.01, 0.01, 1.0]) + 5.0


def test_colours_are_the_strongest_components_in_their_order():
    basis = ColourBasis.fit(tokens())
    assert np.abs(basis.components).argmax(1).tolist() == [2, 0, 5]
    bright = torch.full((3, 6), 5.0)
    for number, channel in enumerate((2, 0, 5)):
        bright[number, channel] += 100.0 * float(np.sign(basis.components[number, channel]))
    shown = basis.colours(bright).astype(int)
    assert [row.argmax() for row in shown] == [0, 1, 2]
    assert shown.diagonal().tolist() == [255, 255, 255]


def test_one_huge_token_does_not_darken_all_others():
    calm = tokens()
    basis = ColourBasis.fit(torch.cat([calm, calm[:1] * 50]))
    shown = basis.colours(calm)
    assert (shown.max(0) - shown.min(0) > 100).sum() >= 2


def test_tokens_with_fewer_than_three_channels_have_colours_too():
    shown = ColourBasis.fit(tokens()[:, 2:4]).colours(tokens()[:, 2:4])
    assert shown.shape == (400, 3)
    assert len(np.unique(shown[:, 2])) == 1


def test_likeness_is_one_for_equals_and_does_not_reward_a_common_mean():
    basis, one = ColourBasis.fit(tokens()), tokens(50, seed=1)
    assert basis.likeness(one, one) == pytest.approx(1.0, abs=1e-5)
    assert abs(basis.likeness(one, tokens(50, seed=2))) < 0.5  # uncentred it is 0.6: all lie around 5


def test_the_map_is_found_from_few_tokens_and_holds_for_others():
    generator = torch.Generator().manual_seed(3)
    truth = torch.randn(4, 6, generator=generator)
    student, unseen = torch.randn(60, 4, generator=generator), torch.randn(2, 9, 4, generator=generator)
    noise = 0.01 * torch.randn(60, 6, generator=generator)
    mapping = fit_map(student, student @ truth + 2.0 + noise)
    assert torch.allclose(mapping(unseen), unseen @ truth + 2.0, atol=0.05)


def test_noise_is_not_fitted():
    generator = torch.Generator().manual_seed(4)
    mapping = fit_map(torch.randn(30, 20, generator=generator), torch.randn(30, 6, generator=generator))
    said = mapping(torch.randn(200, 20, generator=generator))
    assert said.std(0).mean() < 0.8  # plain least squares says 1.4: it has taken the noise for a rule
