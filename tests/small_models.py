"""Models and batches that take a blink, for tests of methods."""

import torch

from attar.models import LinearClassifier, load_backbone
from attar.types import Batch

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2"
WIDE = TINY.replace("embed_dim=32", "embed_dim=48")


def backbone(reference=TINY, *, img_size=32, seed=0):
    """A backbone with random weights."""
    return load_backbone(reference, weights="random", img_size=img_size, seed=seed)


def batch_of(count, *, start=0, total=None, num_classes=3, img_size=32):
    """Labelled noise at positions `start` to `start + count - 1` of a global batch of `total` views."""
    total = total or count
    generator = torch.Generator().manual_seed(1)
    views = torch.rand(total, 3, img_size, img_size, generator=generator)[start : start + count]
    positions = torch.arange(start, start + count)
    no_ids = torch.zeros_like(positions)
    return Batch(views, positions, no_ids, positions, 0, total, labels=positions % num_classes)


def classifier(num_classes=3, features=48, *, embed_dim=48, bias=None):
    """A frozen linear classifier: random, or without weights and with a given bias, which are then its logits."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(num_classes, features, generator=generator)
    if bias is not None:
        weight, bias = torch.zeros(len(bias), features), torch.tensor(bias)
    return LinearClassifier(weight, bias, embed_dim=embed_dim).requires_grad_(False)


def always(head, logits):
    """Make a student's head answer every image with these logits."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))
