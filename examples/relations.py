"""A method of your own in one file: the student learns how the patches of an image relate, not what they are.

    python examples/relations.py --teacher playground --student "playground?depth=2&embed_dim=64&num_heads=2" \
        --data "playground:0?n=400" --img-size 64 --steps 100 --out student

The teacher's patch tokens of one image have N x N cosines; the student's shall have the same ones. Nothing needs to be
projected, so that no head is trained and the widths may differ (in the spirit of Similarity-Preserving distillation,
Tung and Mori, ICCV 2019, but patch by patch within an image, where that paper compares the images of a batch).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attar.config import OptimConfig
from attar.config.distill import PlainViewsConfig
from attar.data.loader import ViewDataset, training_batches
from attar.data.sampler import ViewOrder
from attar.data.sources import open_source
from attar.export import write_student
from attar.methods import Method
from attar.methods.teacher import ask, chosen, frozen, resize
from attar.models import Backbone, load_backbone
from attar.train import ConsoleLog, LoopSettings, Schedule, base_lr, build_state, fit
from attar.types import Batch, StepOutput
from attar.utils.progress import Log


def relations(patches: Tensor) -> Tensor:
    """Cosines of all pairs of patches, (B, N, N) float32 for (B, N, D)."""
    directions = F.normalize(patches.float(), dim=-1)
    return directions @ directions.transpose(1, 2)


class RelationsLearner(nn.Module):
    """All that is trained: here the student alone. Its `forward` makes the whole loss, so that DDP sees one call."""

    def __init__(self, student: Backbone) -> None:
        super().__init__()
        self.student = student

    def forward(self, views: Tensor, target: Tensor, global_batch_size: int) -> Tensor:
        """Squared difference of the relations from (B, N, N), as this batch's share of the global mean."""
        own = relations(chosen(self.student(views), "patch", grid=self.student.grid))
        return (own - target).square().mean((1, 2)).sum() / global_batch_size


class Relations(Method):
    """The method: how patches relate."""

    def __init__(self, teacher: Backbone, student: Backbone) -> None:
        self.title = "relations of patches"
        self.teacher, self.student = frozen(teacher), student
        self.learner: nn.Module = RelationsLearner(student)

    def training_step(self, batch: Batch) -> StepOutput:
        """Mean squared difference of cosines, as a share of the global batch."""
        target = relations(chosen(ask(self.teacher, batch.views), "patch", grid=self.student.grid))
        loss = self.learner(resize(batch.views, self.student.img_size), target, batch.global_batch_size)
        return StepOutput(loss, {"relations": loss.detach()})


def distil(teacher: str, student: str, data: str, out: Path, *, img_size: int, steps: int, batch_size: int) -> Backbone:
    """Train a student by `Relations` on one device, write it to a folder, and return it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [
        load_backbone(reference, weights=weights, img_size=img_size).to(device)
        for reference, weights in ((teacher, "pretrained"), (student, "random"))
    ]
    models[1].normalise_with(models[0].preprocess)  # random weights have no statistics of their own
    method = Relations(*models)
    source = open_source([data])
    stream = ViewDataset(source, ViewOrder(len(source), seed=0, repeats=1), PlainViewsConfig(), img_size)
    optim = OptimConfig(lr=1e-3, ema_decay=0.0)
    state = build_state(method.learner, method.student, optim, device=device)
    schedule = Schedule(base_lr(optim, batch_size), steps, stream.epoch_length / batch_size, optim)
    fit(
        method,
        state,
        training_batches(stream, batch_size=batch_size, start_step=0, num_steps=steps),
        schedule,
        LoopSettings(total_steps=steps, device=device),
        [ConsoleLog(Log(), total_steps=steps, every=max(1, steps // 10))],
    )
    write_student(out, method.student, card=f"# {student}\n\nLearned the relations of patches from {teacher}.\n")
    return method.student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "student", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    distil(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
