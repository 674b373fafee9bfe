"""The playground's teacher of two towers, trained on scenes with their captions (CLIP's objective).

    python benchmarks/playground_clip.py --out runs/playground_clip

Its image tower starts from the playground's teacher of shapes, which the package ships; the text tower from scratch.
Every step draws new scenes of one or two things of the part `seen`; none of them, and no caption, has a combination of
colour and shape that is held out. The teacher of shapes did see them: in the playground's other scenes any shape has
any colour. It was told the shape alone, so what is held out is that a combination was ever named, and that any scene
of this training had it. What comes out is an open_clip directory, and `accuracy.json` beside it: zero-shot on
scenes of one thing, each class called "a red star", for held-out combinations among themselves, for them among all 168,
and for combinations that were seen. Two CPU cores; `--steps` says for how long.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.data.arrangements import COMBINATIONS, Part, render_arrangement
from attar.evaluation import text_classifier, wilson_interval, zero_shot_logits
from attar.export import write_two_towers
from attar.losses import info_nce
from attar.models import Provenance, TextTower, TwoTowers, load_backbone, with_projection
from attar.models.open_clip_text import build_text
from attar.recipes.quickstart import playground_teacher
from attar.train.groups import embeddings_spared
from attar.train.schedule import cosine_lr
from attar.utils.io import write_json
from attar.utils.progress import track
from attar.utils.seeding import seeded_torch
from machine import machine

IMG_SIZE, EMBED_DIM = 64, 128
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
TEST_SEED, TEST_SCENES = 1_000_001, 2800  # of each part: 100 a held-out combination, 20 a seen one
TEMPLATE = "a {}"
WARMUP, FIRST_SCALE, LARGEST_SCALE = 50, 1 / 0.07, 100.0


def fresh_text_tower(text_cfg: dict[str, int], embed_dim: int, *, seed: int) -> TextTower:
    """open_clip's text transformer of a shape with random weights, reading as CLIP does."""
    from open_clip.tokenizer import SimpleTokenizer

    config = {"text_cfg": text_cfg}
    with seeded_torch(seed, "text"):
        model = build_text({"embed_dim": embed_dim, **config}, "text tower")
    length = text_cfg["context_length"]
    return TextTower(
        model,
        SimpleTokenizer(context_length=length),
        embed_dim=embed_dim,
        context_length=length,
        logit_scale=None,
        source=Provenance("text tower"),
        config=config,
    )


def first_towers(seed: int) -> TwoTowers:
    """An image tower that knows shapes, and a text tower of random weights."""
    trunk = load_backbone(str(playground_teacher()), img_size=IMG_SIZE)
    return TwoTowers(with_projection(trunk, EMBED_DIM, seed=seed), fresh_text_tower(TEXT, EMBED_DIM, seed=seed))


def learn(towers: TwoTowers, args: argparse.Namespace) -> float:
    """Train both towers in place, and say what was learned to multiply cosines by."""
    learner = torch.nn.ModuleList([towers.image, towers.text]).train()
    log_scale = torch.nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))
    groups = [*embeddings_spared(learner, args.weight_decay), {"params": [log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    started = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step, total=args.steps, warmup=WARMUP, base=args.lr, warmup_lr=0.0, floor=0.0)
        images, captions = batch(args.seed, step * args.batch_size, args.batch_size)
        scale = log_scale.exp().clamp(max=LARGEST_SCALE)
        features = towers.image.forward_embed(images), towers.text(towers.text.tokenise(captions))
        loss = info_nce(*features, temperature=1 / scale).mean()  # type: ignore[arg-type]  # learned
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 24 or step == args.steps - 1:
            seconds = time.perf_counter() - started
            print(f"  step {step + 1}  loss {loss:.3f}  scale {scale:.1f}  {seconds:.0f} s", flush=True)
    learner.eval()
    return float(log_scale.detach().exp().clamp(max=LARGEST_SCALE))


def batch(seed: int, first: int, count: int) -> tuple[Tensor, list[str]]:
    """(B, 3, H, W) in [0, 1] and a caption of each, none ever drawn before."""
    scenes = [render_arrangement(seed, first + row, size=IMG_SIZE) for row in range(count)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    return images.float() / 255, [scene.caption for scene in scenes]


def test_scenes(part: Part, count: int) -> tuple[Tensor, Tensor]:
    """uint8 (count, 3, H, W) of one thing each, and its class among the part's."""
    rows = track(range(count), f"drawing {part} scenes", total=count, unit="scenes")
    scenes = [render_arrangement(TEST_SEED, row, part=part, things=1, size=IMG_SIZE) for row in rows]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    return images.contiguous(), torch.tensor([scene.label for scene in scenes])


def judge(towers: TwoTowers, scenes: int = TEST_SCENES) -> dict[str, dict[str, Any]]:
    """Zero-shot of held-out combinations among themselves and among all, and of seen ones: value, interval, n."""
    names = {part: [" ".join(pair) for pair in COMBINATIONS[part]] for part in ("held_out", "seen")}
    found = {}
    for part in ("held_out", "seen"):
        images, labels = test_scenes(part, scenes)
        chunks = track(images.split(200), f"embedding {part} scenes", total=len(images), unit="scenes", size=len)
        features = torch.cat([towers.image.embed(chunk) for chunk in chunks])
        everything = names[part] + names["seen" if part == "held_out" else "held_out"]
        for task, classes in ((part, names[part]), (f"{part}_among_all", everything)):
            logits = zero_shot_logits(features, text_classifier(towers.text.encode, classes, [TEMPLATE]))
            hits = (logits.argmax(1) == labels).double()
            value, n = hits.mean().item(), len(hits)
            found[task] = {"value": value, "ci95": wilson_interval(value, n), "n": n, "classes": len(classes)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/playground_clip"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--test-scenes", type=int, default=TEST_SCENES, help="of each part, to measure on")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    towers = first_towers(args.seed)
    started = time.perf_counter()
    scale = learn(towers, args)
    seconds = round(time.perf_counter() - started, 1)
    settings = {name: getattr(args, name) for name in ("steps", "batch_size", "lr", "weight_decay", "seed")}
    results = judge(towers, args.test_scenes)
    for task, result in results.items():
        print(f"  {task:20} {100 * result['value']:.1f} %", flush=True)
    write_two_towers(args.out, towers.image, towers.text, card=card(settings, results), scale=scale)
    given = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    write_json(
        args.out / "accuracy.json",
        {
            "date": datetime.date.today().isoformat(),
            "command": f"python benchmarks/playground_clip.py {given}",
            "machine": machine("timm", "open_clip_torch"),
            "seconds": seconds,
            "results": results,
        },
    )


def card(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    """What the model is, for its folder."""
    shares = "\n".join(f"- {task.replace('_', ' ')}: {100 * found['value']:.1f} %" for task, found in results.items())
    return (
        f"# The playground's teacher of two towers\n\nMade by benchmarks/playground_clip.py, {settings}.\n\n{shares}\n"
    )


if __name__ == "__main__":
    main()
