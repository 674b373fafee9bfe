"""What a model costs to run, counted and not looked up."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from attar.models.backbone import Backbone


def forward_macs(backbone: Backbone) -> int:
    """Multiply-adds of one image's forward pass: matrix products, convolutions and attention, by PyTorch's count."""
    size = backbone.img_size
    image = torch.full((1, 3, size, size), 0.5, device=backbone.mean.device)
    counter = FlopCounterMode(display=False)
    with counter:
        backbone.tokens(image)
    return int(counter.get_total_flops()) // 2
