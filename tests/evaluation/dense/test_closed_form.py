from __future__ import annotations

import torch
import torch.nn.functional as F

from attar.evaluation.dense.closed_form import tokens_at


def test_tokens_at_pixels_are_what_interpolation_gives_there() -> None:
    # catches align_corners, swapped axes, and pixel corners taken for centres
    tokens = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    large = F.interpolate(tokens[None], size=(15, 33), mode="bilinear")[0]
    where = torch.arange(15 * 33)
    torch.testing.assert_close(tokens_at(tokens, where, size=(15, 33)), large.flatten(1).T, atol=1e-5, rtol=0)
