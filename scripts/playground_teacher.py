"""Train the teacher that `attar quickstart` ships with, from nothing but playground scenes.

    python scripts/playground_teacher.py --out src/attar/data/assets/playground_teacher --steps 4000

About half an hour on two CPU cores. The model learns the class of the main shape from its class token and the
class under every patch from its patch tokens; the two classifiers are thrown away and the backbone is written as a
timm directory in float16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from attar.data.playground import CLASS_NAMES, render_scene

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
TRAIN_SEED, TEST_SEED = 1_000_003, 1_000_004  # streams that no quickstart run uses


class Scenes(IterableDataset[tuple[Tensor, Tensor, Tensor]]):
    """Endless batches: images (B, 3, 64, 64) uint8, labels (B,), patch labels (B, 64)."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        batch = worker
        while True:
            yield scenes(TRAIN_SEED, batch * self.batch_size, self.batch_size)
            batch += workers


def scenes(seed: int, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    rendered = [render_scene(seed, start + i) for i in range(count)]
    images = torch.from_numpy(np.stack([s.image for s in rendered])).permute(0, 3, 1, 2)
    masks = torch.from_numpy(np.stack([s.mask for s in rendered]))
    patches = masks.unfold(1, 8, 8).unfold(2, 8, 8).reshape(count, 64, 64)
    covered = (patches > 0).float().mean(-1) > 0.35
    labels = torch.tensor([s.label for s in rendered])
    return images, labels, torch.where(covered, labels[:, None] + 1, 0)


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255 * 2 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = timm.create_model(ARCHITECTURE, num_classes=0, **MODEL_ARGS)
    image_head, patch_head = nn.Linear(128, len(CLASS_NAMES)), nn.Linear(128, len(CLASS_NAMES) + 1)
    parameters = [*model.parameters(), *image_head.parameters(), *patch_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05)
    test_images, test_labels, _ = scenes(TEST_SEED, 0, 700)

    started = time.perf_counter()
    loader = DataLoader(Scenes(args.batch_size), batch_size=None, num_workers=1, prefetch_factor=8)
    for step, (images, labels, patch_labels) in enumerate(loader):
        if step == args.steps:
            break
        warmup = min(1.0, (step + 1) / 300)
        lr = args.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        optimizer.param_groups[0]["lr"] = lr
        tokens = model.forward_features(normalise(images))
        loss_image = F.cross_entropy(image_head(tokens[:, 0]), labels)
        loss_patch = F.cross_entropy(patch_head(tokens[:, 1:]).flatten(0, 1), patch_labels.flatten())
        (loss_image + loss_patch).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            model.eval()
            with torch.inference_mode():
                hits = image_head(model.forward_features(normalise(test_images))[:, 0]).argmax(1) == test_labels
            model.train()
            rate = (step + 1) * args.batch_size / (time.perf_counter() - started)
            print(
                f"step {step}  image {loss_image.item():.3f}  patch {loss_patch.item():.3f}"
                f"  accuracy {hits.float().mean():.3f}  {rate:.0f} img/s",
                flush=True,
            )

    args.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, args.out / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": 128,
        "global_pool": "token",
        "model_args": MODEL_ARGS,
        "pretrained_cfg": {
            "tag": "attar_playground",
            "license": "apache-2.0",
            "input_size": [3, 64, 64],
            "num_classes": 0,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
