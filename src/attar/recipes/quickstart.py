"""`attar quickstart`: a real distillation with no data, no GPU and no network."""

from __future__ import annotations

from pathlib import Path

from attar.config import DistillConfig
from attar.models.references import PLAYGROUND, parse_reference
from attar.recipes.distill import DistillReport, distill


def playground_teacher() -> Path:
    """Folder of the shipped playground teacher, a timm directory (scripts/playground_teacher.py makes it again)."""
    return Path(parse_reference(PLAYGROUND).name)


def quickstart_config(out: str = "runs/quickstart") -> DistillConfig:
    """A ViT with 0.2 M parameters from the 0.8 M playground teacher: two CPU cores, two to three minutes."""
    return DistillConfig(
        teacher=PLAYGROUND,
        student="vit_tiny_patch16_224?patch_size=8&embed_dim=96&depth=3&num_heads=3&init_values=1.0",
        data="playground:0?n=4000&variety=0",
        out=out,
        monitor="playground:1?n=1400&variety=0",
        img_size=64,
        batch_size=32,
        max_steps=700,
        precision="fp32",
        views={"crop_scale": (0.9, 1.0), "flip": 0.0, "randaugment": False, "erase": 0.0, "repeats": 1},
        optim={"lr": 3e-3, "warmup_epochs": 0.3, "ema_decay": 0.99, "clip_norm": 1.0},
        monitoring={"crop_pct": 1.0, "limit": 1400, "every": 175},
        log_every=50,
    )


def quickstart(out: str = "runs/quickstart") -> DistillReport:
    """Distil the playground teacher into a student a quarter its size and say whether it helped."""
    return distill(quickstart_config(out))
