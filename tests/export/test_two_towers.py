"""A two-tower student as a directory of open_clip: its own factory loads it, and sees and reads as the towers do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attar.errors import ConfigError

open_clip = pytest.importorskip("open_clip")
import small_clip  # noqa: E402
import small_models  # noqa: E402
from attar.evaluation.zero_shot import text_classifier, zero_shot_logits  # noqa: E402
from attar.export import check_ships, write_two_towers  # noqa: E402
from attar.models import (  # noqa: E402
    Backbone,
    TextTower,
    load_backbone,
    load_text_tower,
    small_text_tower,
    with_projection,
)
from attar.recipes.quickstart import playground_teacher  # noqa: E402

STUDENTS = [(small_models.TINY, 32), (f"{small_models.TINY}&init_values=0.1&global_pool=avg", 32), ("resnet10t", 64)]
TEXTS = ["a photo of a cat.", "A PHOTO of two dogs & a bird", "many more words than twelve tokens can ever hold, cut"]
NAMES, TEMPLATES = ["cat", "golden retriever", "sea snake", "tree"], ["a photo of a {}.", "art of the {}."]


def teacher_text(seed: int = 3) -> TextTower:
    small_clip.register()
    return load_text_tower(small_clip.REFERENCE, weights="random", seed=seed)


def student(reference: str, img_size: int, width: int = 16) -> Backbone:
    return with_projection(load_backbone(reference, weights="random", img_size=img_size, seed=4), width)


def pictures(size: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (6, size, size, 3), np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def assert_close(given: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 0.01  # nothing is compared with nothing
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def assert_loads_the_same(folder: Path, image: Backbone, text: TextTower) -> None:
    """open_clip's factory, its preprocessing and its tokeniser, against the towers: embeddings and predictions."""
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    tokenise = open_clip.get_tokenizer(f"local-dir:{folder}")
    files = pictures(image.img_size)
    pixels = torch.stack([torch.from_numpy(np.array(file)).permute(2, 0, 1) for file in files])
    seen, read = (
        model.encode_image(torch.stack([preprocess(file) for file in files])),
        model.encode_text(tokenise(TEXTS)),
    )
    assert_close(seen, image.embed(pixels))
    assert_close(read, text.encode(TEXTS))
    theirs = open_clip.build_zero_shot_classifier(
        model, tokenise, NAMES, [lambda n, t=t: t.format(n) for t in TEMPLATES]
    )
    ours = zero_shot_logits(image.embed(pixels), text_classifier(text.encode, NAMES, TEMPLATES))
    assert torch.equal((seen @ theirs).argmax(1), ours.argmax(1))


@pytest.mark.parametrize(
    ("reference", "img_size", "learns_text"),
    [(*student, learns) for student, learns in zip(STUDENTS, (False, True, True), strict=True)],
)
def test_open_clip_loads_the_student(tmp_path, reference, img_size, learns_text) -> None:
    image, text = student(reference, img_size), teacher_text()
    if learns_text:
        text = small_text_tower(text, depth=2, width=8, num_heads=2)
    check_ships(image, text)
    write_two_towers(tmp_path / "student", image, text, card="a card", scale=50.0)
    assert_loads_the_same(tmp_path / "student", image, text)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'student'}")
    assert model.logit_scale.exp().item() == pytest.approx(50, rel=1e-6)
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


def test_a_student_that_is_open_clips_own_ships_too(tmp_path) -> None:
    text = teacher_text()
    image = load_backbone(small_clip.REFERENCE, weights="random", img_size=48)
    write_two_towers(tmp_path / "student", image, text, card="", scale=100.0)
    assert_loads_the_same(tmp_path / "student", image, text)


@pytest.mark.parametrize(
    ("kind", "learns_text"), [("clip", False), ("siglip", False), ("siglip", True), ("siglip2", False)]
)
def test_text_towers_of_transformers_ship_with_their_tokeniser(tmp_path, kind, learns_text) -> None:
    pytest.importorskip("transformers")
    import small_transformers

    small_transformers.write(tmp_path / "teacher", kind)
    text = load_text_tower(f"hf:{tmp_path / 'teacher'}")
    if learns_text:
        text = small_text_tower(text, depth=1, width=16, num_heads=2)
    image = student(f"{small_models.TINY}{'&act_layer=quick_gelu' if kind == 'clip' else ''}", 32, text.embed_dim)
    check_ships(image, text)
    write_two_towers(tmp_path / "student", image, text, card="", scale=100.0)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'student'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'student'}")(small_transformers.TEXTS)
    assert torch.equal(tokens, text.tokenise(small_transformers.TEXTS))
    with torch.no_grad():
        assert_close(model.encode_text(tokens), text.encode(small_transformers.TEXTS))
    said = [path.read_text() for path in (tmp_path / "student").glob("*.json")]
    assert not any(str(tmp_path) in text for text in said)  # of the machine that trained it nothing is told


PLAIN_OPEN_CLIP = """
import sys
sys.modules["attar"] = None  # importing attar now fails
import open_clip, torch
folder, images_file, out = sys.argv[1:]
model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
tokenise = open_clip.get_tokenizer(f"local-dir:{folder}")
with torch.no_grad():
    torch.save([model.encode_image(torch.load(images_file)), model.encode_text(tokenise(["a cat"]))], out)
"""


def test_it_loads_where_attar_cannot_be_imported(tmp_path) -> None:
    image, text = student(*STUDENTS[0]), teacher_text()
    write_two_towers(tmp_path / "student", image, text, card="", scale=100.0)
    images = torch.rand(2, 3, 32, 32)
    torch.save((images - image.mean) / image.std, tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("student", "images.pt", "out.pt")]
    done = subprocess.run([sys.executable, "-c", PLAIN_OPEN_CLIP, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    seen, read = torch.load(tmp_path / "out.pt")
    assert_close(seen, image.embed(images))
    assert_close(read, text.encode(["a cat"]))


def test_the_configuration_tells_the_students_own_statistics_and_size(tmp_path) -> None:
    image = student(*STUDENTS[2])
    write_two_towers(tmp_path / "student", image, teacher_text(), card="a card", scale=100.0)
    said = json.loads((tmp_path / "student" / "open_clip_config.json").read_text())
    assert said["preprocess_cfg"]["mean"] == list(image.preprocess.mean)
    assert said["preprocess_cfg"]["size"] == said["model_cfg"]["vision_cfg"]["image_size"] == 64
    assert (tmp_path / "student" / "README.md").read_text() == "a card"


def test_towers_that_cannot_ship_together_are_refused_before_anything_is_written(tmp_path) -> None:
    text = teacher_text()
    with pytest.raises(ConfigError, match="embeds in 24 channels and the text tower in 16"):
        check_ships(student(*STUDENTS[0], width=24), text)
    quick = student(f"{small_models.TINY}&act_layer=quick_gelu", 32)
    with pytest.raises(ConfigError, match=r"computes QuickGELU and the text tower .* GELU.* Add act_layer=gelu"):
        check_ships(quick, text)
    with pytest.raises(ConfigError, match="registers"):
        write_two_towers(
            tmp_path / "student", student(f"{small_models.TINY}&reg_tokens=1", 32), text, card="", scale=100.0
        )
    assert not any(tmp_path.iterdir())


def test_what_would_embed_otherwise_is_noticed(tmp_path, monkeypatch) -> None:
    """A difference that no rule names, here one in the forward pass, is one in the embeddings."""
    image = student(*STUDENTS[0])
    head = image.model.visual.head
    head.register_forward_hook(lambda module, given, output: output * 1.01)
    with pytest.raises(ConfigError, match=r"embeds otherwise, by 0\.0"):
        check_ships(image, teacher_text())


def test_a_trunk_from_a_folder_with_a_name_of_its_own_ships() -> None:
    # timm knows no weights of the folder's tag, and says so by raising
    trunk = load_backbone(str(playground_teacher()), img_size=64)
    check_ships(with_projection(trunk, 16), teacher_text())
