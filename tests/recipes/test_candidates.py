"""Who is judged of a run of two towers, of a directory of open_clip, and of a model of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import attar
from attar import DistillVlConfig, EvaluateConfig
from attar.cli import main
from attar.errors import ConfigError
from attar.models import load_two_towers
from attar.recipes.candidates import Candidate, candidates
from small_models import TINY
from small_runs import picture

pytest.importorskip("open_clip")
import small_clip

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, sentences, labelled images, and a run on them."""
    small_clip.register()
    root = tmp_path_factory.mktemp("candidates")
    (root / "images").mkdir()
    for index in range(8):
        picture(index).save(root / f"images/{index}.png")
    for index in range(24):
        folder = root / "test" / ("cat" if index % 2 else "sea snake")
        folder.mkdir(parents=True, exist_ok=True)
        picture(100 + index).save(folder / f"{index}.png")
    (root / "text.txt").write_text("a cat by the sea\na dog on a photo\nthe moon\na house of wood\n" * 4)
    attar.distill_vl(
        DistillVlConfig.build(
            {
                "teacher": small_clip.REFERENCE,
                "teacher_weights": "random",
                "student": TINY,
                "images": str(root / "images"),
                "sentences": str(root / "text.txt"),
                "out": str(root / "run"),
                "dime_fm": {"text_mode": "small_student"},
                "text": {"depth": 1, "width": 8, "num_heads": 2},
                "img_size": 32,
                "batch_size": 4,
                "text_batch_size": 4,
                "max_steps": 2,
                "workers": 0,
                "device": "cpu",
            }
        )
    )
    return root


def judged(model: Path | str, **settings: object) -> dict[str, Candidate]:
    config = EvaluateConfig.build({"model": str(model), "tasks": "zero_shot:x", "out": "out", **settings})
    return {candidate.role: candidate for candidate in candidates(config)}


def evaluate(model: Path | str, places: Path, out: Path, *more: str) -> dict[str, dict]:
    words = ["evaluate", str(model), "--tasks", f"zero_shot:{places / 'test'}", "--out", str(out)]
    assert main([*words, "--device", "cpu", "--workers", "0", *more]) == 0
    found = [json.loads(path.read_text()) for path in sorted((out / "results").glob("*.json"))]
    return {one["role"]: one for one in found}


def test_of_a_run_of_two_towers_student_teacher_and_random_read(places: Path) -> None:
    found = judged(places / "run")
    assert list(found) == ["student", "teacher", "random"]
    shipped = load_two_towers(str(places / "run" / "student"))
    teacher = load_two_towers(small_clip.REFERENCE, weights="random")
    student, random = found["student"].load(None), found["random"].load(None)
    assert torch.equal(student.embed(IMAGES), shipped.image.embed(IMAGES))
    assert torch.equal(found["teacher"].load(None).embed(IMAGES), teacher.image.embed(IMAGES))
    assert random.embed(IMAGES).shape == student.embed(IMAGES).shape
    assert not torch.allclose(random.embed(IMAGES), student.embed(IMAGES), atol=1e-3)
    assert random.preprocess == student.preprocess
    texts = {role: candidate.load_text().encode(["a cat"]) for role, candidate in found.items()}
    assert torch.equal(texts["student"], shipped.text.encode(["a cat"]))
    assert torch.equal(texts["random"], texts["teacher"])  # as in the run
    assert torch.equal(texts["teacher"], teacher.text.encode(["a cat"]))
    assert len(found["student"].learned_from()) == 8
    assert judged(places / "run", img_size=48)["student"].load(None).img_size == 48


def test_zero_shot_of_a_run_and_of_its_students_folder(places: Path, tmp_path: Path) -> None:
    run = evaluate(places / "run", places, tmp_path / "run")
    folder = evaluate(places / "run" / "student", places, tmp_path / "folder")
    assert run.keys() == {"student", "teacher", "random"}
    assert folder["model"]["value"] == run["student"]["value"]
    assert folder["model"]["n"] == run["student"]["n"] > 8
    assert judged(places / "run" / "student")["model"].load(None).img_size == 32  # its own, not 224


def test_images_that_a_run_was_trained_on_are_told(places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "run", tmp_path / "run")
    evaluate(tmp_path / "run", places, tmp_path / "apart", "--roles", "student")
    assert "caution" not in (tmp_path / "apart/log.txt").read_text()
    settings = tmp_path / "run/config.yaml"
    settings.write_text(settings.read_text().replace(str(places / "images"), str(places / "test")))
    found = evaluate(tmp_path / "run", places, tmp_path / "same", "--roles", "student")
    assert found["student"]["held_out"] is False
    said = f"caution  zero_shot:{places / 'test'}: The images measured on lie where those trained on do"
    assert said in (tmp_path / "same/log.txt").read_text()


def test_zero_shot_of_a_model_of_transformers(places: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import small_transformers

    small_transformers.write(tmp_path / "clip", "clip")
    found = evaluate(f"hf:{tmp_path / 'clip'}", places, tmp_path / "out", "--img-size", "32")
    assert 0 <= found["model"]["value"] <= 1
    assert judged(tmp_path / "clip")["model"].load_text is not None
    assert judged(TINY)["model"].load_text is None


def test_a_run_without_a_student_yet_is_told(places: Path, tmp_path: Path) -> None:
    for name in ("run.json", "config.yaml"):
        (tmp_path / name).write_bytes((places / "run" / name).read_bytes())
    with pytest.raises(ConfigError, match="has no student yet"):
        judged(tmp_path)
