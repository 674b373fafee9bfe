"""Settings of a small transfer on playground scenes."""

from __future__ import annotations

import attar
from attar.recipes.quickstart import playground_teacher

STUDENT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"


def config_of(out, **changes):
    settings = {
        "teacher": str(playground_teacher()),
        "student": STUDENT,
        "labelled": "playground:3?n=140",
        "val": "playground:5?n=28",
        "test": "playground:4?n=42",
        "pool": "playground:0?n=64",
        "labels_per_class": 2,
        "img_size": 32,
        "teacher_img_size": 64,
        "out": str(out),
        "device": "cpu",
        "precision": "fp32",
        "workers": 0,
        "transfer": {"max_steps": 4, "batch_size": 8, "optim": {"lr": 1e-3}},
        "finetune": {"max_steps": 4, "batch_size": 8, "every": 2},
        "adapt": {"max_steps": 2, "batch_size": 4, "every": 1},
    }
    return attar.TransferConfig.build(settings | changes)
