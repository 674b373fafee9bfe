"""`attar distill-vl` on two ranks is the run of one process: what the teacher said, and what was learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("open_clip", reason="needs the extra vl")

from PIL import Image

from attar.config import DistillVlConfig
from attar.data.arrangements import render_arrangement
from attar.data.playground_sentences import draw_sentence
from attar.models import load_two_towers
from small_clip import write_teacher
from small_models import TINY
from small_runs import run_on_ranks


def run(places: Path, folder: Path, ranks: int, **changes) -> Path:
    """The run directory of a command on so many ranks."""
    settings = {
        "teacher": str(places / "teacher"),
        "student": TINY,
        "images": str(places / "images"),
        "sentences": str(places / "text.txt"),
        "monitor": str(places / "test"),
        "out": str(folder / "out"),
        "img_size": 32,
        "batch_size": 8,
        "text_batch_size": 12,
        "max_steps": 3,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    said = run_on_ranks("distill-vl", DistillVlConfig.build(settings | changes), ranks)
    assert said.count("  plan  ") == 1  # one rank speaks
    return folder / "out"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, 20 images, 30 sentences, and labelled images."""
    root = tmp_path_factory.mktemp("places")
    write_teacher(root / "teacher")
    for folder, seed in (("images", 0), ("test/red_star", 1), ("test/blue_ring", 2)):
        (root / folder).mkdir(parents=True)
        for index in range(20 if folder == "images" else 5):
            Image.fromarray(render_arrangement(seed, index, size=32).image).save(root / folder / f"{index:02}.png")
    (root / "text.txt").write_text("\n".join(draw_sentence(0, index).text for index in range(30)))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("views", ["fixed", "matched"])
def test_two_ranks_make_the_towers_of_one_process(views: str, places: Path, tmp_path: Path) -> None:
    text = {"dime_fm": {"text_mode": "small_student"}, "text": {"depth": 1, "width": 8, "num_heads": 2}}
    changes = text if views == "fixed" else {"teacher_views": "matched", "cached_views": 2}
    alone, together = (run(places, tmp_path / str(ranks), ranks, **changes) for ranks in (1, 2))
    ours, theirs = (load_two_towers(str(out / "student")) for out in (alone, together))
    images, texts = torch.rand(8, 3, 32, 32), ["a red star", "two blue rings"]
    # what they say and not their weights: the bias of attention keys has no gradient but rounding, which Adam enlarges
    for one, other in (
        (ours.image.embed(images), theirs.image.embed(images)),
        (ours.text.encode(texts), theirs.text.encode(texts)),
    ):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-4 * one.abs().max().item())
    for file in sorted((alone / "features").rglob("vectors-*.npy")):
        np.testing.assert_allclose(
            np.load(file), np.load(together / file.relative_to(alone)), atol=2e-3, err_msg=str(file)
        )
