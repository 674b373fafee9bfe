"""What `assemble` gives teacher and student: statistics of the normalisation, and where the student starts."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import torch

from attar.config import DistillConfig
from attar.errors import ConfigError
from attar.models import Backbone, Preprocess, load_backbone
from attar.recipes.assembly import _check_shares, assemble
from attar.recipes.distill import distill

CPU = torch.device("cpu")
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = Preprocess()
VIT = "vit_tiny_patch16_224?patch_size=8&num_heads=2"  # timm: 0.5
CLIP = "vit_base_patch16_clip_quickgelu_224?patch_size=8&num_heads=2&embed_dim=48&depth=3"  # timm: CLIP's own


def settings(tmp_path: Path, **changes: object) -> DistillConfig:
    base = {
        "teacher": CLIP,
        "teacher_weights": "random",
        "student": f"{VIT}&embed_dim=32&depth=2",
        "data": "playground:0?n=16",
        "out": str(tmp_path / "run"),
        "img_size": 32,
        "batch_size": 4,
        "max_steps": 2,
        "workers": 0,
        "device": "cpu",
        "precision": "fp32",
    }
    return DistillConfig.build(base | changes)


def statistics(backbone: Backbone) -> tuple[float, ...]:
    return (*backbone.mean.flatten().tolist(), *backbone.std.flatten().tolist())


def test_own_statistics_are_those_of_the_weights(tmp_path: Path) -> None:
    built = assemble(settings(tmp_path), CPU)
    assert built.teacher.preprocess.mean[0] == pytest.approx(0.48145466)
    assert built.student.preprocess == built.teacher.preprocess  # random weights: the teacher's, not timm's 0.5


def test_a_student_from_a_file_keeps_the_statistics_of_its_architecture(tmp_path: Path) -> None:
    config = settings(tmp_path)
    student = load_backbone(config.student, weights="random", img_size=32)
    torch.save(student.model.state_dict(), tmp_path / "student.pth")
    built = assemble(config.replace(student_weights=str(tmp_path / "student.pth")), CPU)
    assert built.student.preprocess == HALF == student.preprocess


def test_imagenet_statistics_everywhere_as_released(tmp_path: Path) -> None:
    built = assemble(settings(tmp_path, normalisation="imagenet"), CPU)
    wanted = pytest.approx((0.485, 0.456, 0.406, 0.229, 0.224, 0.225))
    assert statistics(built.teacher) == statistics(built.student) == wanted
    images = torch.rand(1, 3, 32, 32)
    pixels = (images - torch.tensor(IMAGENET.mean).view(3, 1, 1)) / torch.tensor(IMAGENET.std).view(3, 1, 1)
    tokens = built.teacher.model.forward_features(pixels)  # type: ignore[operator]
    torch.testing.assert_close(built.teacher.tokens(images).cls, tokens[:, 0])


@pytest.mark.parametrize("weights", ["random", "teacher"])
def test_the_exported_student_carries_the_statistics_it_learned_with(tmp_path: Path, weights: str) -> None:
    config = settings(tmp_path, student_weights=weights, student=f"{VIT}&embed_dim=24&depth=2")
    if weights == "teacher":
        config = config.replace(student=CLIP.replace("48", "24"))
    report = distill(config)
    for folder in ("student", "student-last"):
        written = json.loads((report.run / folder / "config.json").read_text())["pretrained_cfg"]
        assert written["mean"][0] == pytest.approx(0.48145466)  # of the teacher, in both cases
        back = load_backbone(str(report.run / folder), img_size=32)
        assert back.preprocess.mean == tuple(written["mean"])


def test_a_student_from_its_teachers_weights_runs_says_so_and_is_judged_against_a_random_one(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        teacher=f"{VIT}&embed_dim=48&depth=4",
        student_weights="teacher",
        student_layers="uniform",
        monitor="playground:1?n=140",
    )
    built = assemble(config, CPU)
    qkv = built.teacher.model.blocks[2].attn.qkv.bias  # type: ignore[index, union-attr]
    start = built.student.model.blocks[1].attn.qkv.bias  # type: ignore[index, union-attr]
    assert torch.equal(start[:4], qkv[[0, 1, 3, 4]])  # type: ignore[index]
    assert built.student.preprocess == built.teacher.preprocess == HALF
    report = distill(config)
    words = "selected from the teacher (uniform layers)"
    assert words in (report.run / "log.txt").read_text()
    assert f"| student started from | {words} |" in (report.student / "README.md").read_text()
    sources = {result.role: result.source["weights"] for result in report.results}
    assert sources["random"] == "random"


def test_a_selected_start_is_the_same_each_time(tmp_path: Path) -> None:
    config = settings(tmp_path, teacher=f"{VIT}&embed_dim=48&depth=2", student_weights="teacher")
    once, again = (assemble(config, CPU).student.model.state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_an_open_clip_student_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = settings(tmp_path, student="open_clip:ViT-B-32", data="nowhere")
    with pytest.raises(ConfigError, match=r"could not ship: .* Take timm's form of it"):
        assemble(config, CPU)


def test_transformers_teach_and_learn(tmp_path: Path) -> None:
    """Three terms, masks among them, with a model of transformers on both sides; what ships is judged as it lies."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3}
    transformers.ViTConfig(**shape, image_size=64, patch_size=8).save_pretrained(tmp_path / "vit")
    teacher = transformers.Dinov2WithRegistersConfig(**shape, image_size=32, patch_size=8)
    transformers.Dinov2WithRegistersModel(teacher).save_pretrained(tmp_path / "teacher")
    config = settings(
        tmp_path,
        teacher=f"hf:{tmp_path / 'teacher'}",
        teacher_weights="pretrained",
        student=f"hf:{tmp_path / 'vit'}",
        monitor="playground:1?n=40&variety=0",
    )
    report = distill(config)
    student = load_backbone(str(report.student))
    assert (student.img_size, student.preprocess) == (32, IMAGENET)
    assert {result.role for result in report.results} == {"teacher", "student", "random"}
    before = load_backbone(config.student, weights="random", img_size=32)
    assert not torch.equal(student.model.state_dict()["model.layernorm.weight"], before.model.model.layernorm.weight)


@pytest.mark.parametrize(("method", "rule"), [("proteus", "random"), ("proteus", "paper"), ("hint", "random")])
def test_the_batch_size_that_a_refusal_suggests_is_accepted(rule: str, method: str, tmp_path: Path) -> None:
    # catches a suggestion that the next check refuses; 49 * (1 / 49) is below 1 in floats
    sizes, refused = itertools.product((1, 2, 7, 15, 30), (1, 3, 4), (1, 2, 5), (1 / 49, 0.1, 0.5, 1.0)), 0
    for batch_size, accumulate, ranks, probability in sizes:
        proteus = {"mask_rule": rule, "mask_probability": probability} if method == "proteus" else {}
        config = settings(
            tmp_path, method=method, batch_size=batch_size, optim={"accumulate": accumulate}, proteus=proteus
        )
        try:
            _check_shares(config, ranks)
        except ConfigError as error:
            suggested = re.search(r"--batch-size (\d+)", str(error).replace("\n", " "))
            assert suggested is not None
            _check_shares(config.replace(batch_size=int(suggested[1])), ranks)
            refused += 1
            continue
        assert batch_size % (accumulate * ranks) == 0
        masked_together = batch_size // (accumulate * ranks) if rule == "paper" else batch_size
        assert method == "hint" or int(masked_together * probability) > 0
    assert 50 < refused < 180
