"""What a model costs to run, counted and not looked up."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from attar.models.backbone import Backbone
from attar.models.task_model import TaskModel


def forward_macs(model: Backbone | TaskModel) -> int:
    """Multiply-adds of one image's forward pass: matrix products, convolutions and attention, by PyTorch's count."""
    backbone = model.backbone if isinstance(model, TaskModel) else model
    size = backbone.img_size
    image = torch.full((1, 3, size, size), 0.5, device=backbone.mean.device)
    counter = FlopCounterMode(display=False)
    with counter:
        if isinstance(model, TaskModel):
            model.logits(image)
        else:
            model.tokens(image)
    return int(counter.get_total_flops()) // 2
