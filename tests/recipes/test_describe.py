"""What a run calls its models."""

from __future__ import annotations

from dataclasses import replace

from attar.config import OptimConfig
from attar.models import load_backbone
from attar.recipes.describe import describe, low_rate, short, told_rate
from small_models import TINY


def test_a_folder_goes_by_its_own_name_and_anything_else_as_it_was_given(tmp_path):
    (tmp_path / "dino").mkdir()
    assert short(str(tmp_path / "dino")) == "dino"
    assert short(f"{tmp_path}/dino?img_size=224") == "dino?img_size=224"
    assert short(f"hf:{tmp_path}/dino") == "hf:dino"
    for reference in ("vit_small_patch14_dinov2", "hf:facebook/dinov2-small", "open_clip:ViT-B-32?pretrained=openai"):
        assert short(reference) == reference


def test_a_student_goes_by_its_run(tmp_path, monkeypatch):
    (tmp_path / "s1/student").mkdir(parents=True)
    assert short(f"{tmp_path}/s1/student") == "s1/student"
    monkeypatch.chdir(tmp_path / "s1")
    assert short("./student") == "student"


def test_what_is_left_aside_of_a_file_is_told_by_what_it_is():
    backbone = load_backbone(TINY, weights="random", img_size=32)
    unused = {f"text.{n}": "text tower; a backbone has none" for n in range(30)} | {"logit_scale": "temperature"}
    backbone.source = replace(backbone.source, explained=tuple(unused.items()))
    assert describe(backbone).endswith("left aside: text tower (30 keys), temperature (1 keys)")
    assert "aside" not in describe(backbone, is_whole=False)


def test_a_learning_rate_that_a_small_batch_makes_low_is_named():
    assert told_rate(OptimConfig(), 16) == "learning rate 1.56e-05"
    assert "0.0005 x 16 / 512" in low_rate(OptimConfig(), 16)
    assert "Try --transfer.optim.lr" in low_rate(OptimConfig(), 16, flag="transfer.optim")
    assert not low_rate(OptimConfig(), 128)
    assert not low_rate(OptimConfig(lr=1e-5), 16)  # who gave it knows it
