from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from attar.export import library_of, model_card, write_student
from attar.models import Backbone, licence_named, load_backbone, terms_of

STUDENTS = [
    "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2&init_values=1.0",
    "vit_small_patch14_reg4_dinov2?embed_dim=48&depth=1&num_heads=2",
    "resnet10t",
    "mobilevitv2_050",
]


def exported(tmp_path: Path, reference: str) -> tuple[Backbone, Path]:
    student = load_backbone(reference, weights="random", img_size=56 if "patch14" in reference else 64, seed=3)
    write_student(tmp_path / "student", student, card=model_card("a student", {"teacher": "none"}, "no table"))
    return student, tmp_path / "student"


@pytest.mark.parametrize("reference", STUDENTS)
def test_student_comes_back_through_attar_with_the_same_tokens(tmp_path: Path, reference: str) -> None:
    student, folder = exported(tmp_path, reference)
    back = load_backbone(str(folder), img_size=student.img_size)
    images = torch.rand(2, 3, student.img_size, student.img_size)
    torch.testing.assert_close(back.tokens(images).cls, student.tokens(images).cls, rtol=0, atol=0)
    torch.testing.assert_close(back.tokens(images).patch, student.tokens(images).patch, rtol=0, atol=0)
    assert back.preprocess == student.preprocess
    assert back.source.sha256


PLAIN_TIMM = """
import sys
sys.modules["attar"] = None  # importing attar now fails
import timm, torch
from torch import Tensor
try:
    import attar
except ImportError:
    pass
else:
    raise SystemExit("attar can be imported")
folder, images_file, out = sys.argv[1:]
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
mean, std = (torch.tensor(model.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
with torch.no_grad():
    torch.save(model.forward_features((torch.load(images_file) - mean) / std), out)
"""


@pytest.mark.parametrize("reference", [STUDENTS[0], pytest.param(STUDENTS[2], marks=pytest.mark.slow)])
def test_student_loads_with_plain_timm_where_attar_cannot_be_imported(tmp_path: Path, reference: str) -> None:
    student, folder = exported(tmp_path, reference)
    images = torch.rand(2, 3, student.img_size, student.img_size)
    torch.save(images, tmp_path / "images.pt")
    command = [
        sys.executable,
        "-c",
        PLAIN_TIMM,
        str(folder),
        str(tmp_path / "images.pt"),
        str(tmp_path / "features.pt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    features = torch.load(tmp_path / "features.pt")
    tokens = student.tokens(images)
    patch = features[:, 1:] if features.ndim == 3 else features.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patch, tokens.patch, rtol=0, atol=1e-6)


def test_config_says_nothing_of_the_published_weights_of_the_architecture(tmp_path: Path) -> None:
    # transformers fails on a num_classes inside model_args; licence and hub id are those of other weights
    _, folder = exported(tmp_path, STUDENTS[1])
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert "num_classes" not in config["model_args"]
    assert config["num_classes"] == 0
    assert config["pretrained_cfg"]["input_size"] == [3, 56, 56]
    assert "license" not in text
    assert "hf_hub_id" not in text
    assert "lvd142m" not in text


@pytest.mark.parametrize("reference", [STUDENTS[0], "module"])
def test_what_a_student_was_made_from_binds_those_that_start_from_it(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made.py").write_text("from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 8, 8, 8)\n")
    monkeypatch.syspath_prepend(tmp_path)
    reference = "module:made:make" if reference == "module" else reference
    student = load_backbone(reference, weights="random", img_size=32)
    terms = licence_named("apache-2.0 and cc-by-nc-4.0")
    write_student(tmp_path / "student", student, card="", licence=terms)
    back = load_backbone(reference, weights=tmp_path / "student/model.safetensors", img_size=32)
    assert terms_of(back.source) == terms
    if reference == STUDENTS[0]:
        assert terms_of(load_backbone(str(tmp_path / "student")).source) == terms
        timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)  # which passes over what it knows not


def test_writing_again_replaces_the_student_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    exported(tmp_path, STUDENTS[0])
    second = load_backbone(STUDENTS[0], weights="random", img_size=64, seed=9)
    write_student(tmp_path / "student", second, card="second")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    back = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
    assert torch.equal(back.cls_token, second.model.cls_token)
    assert (tmp_path / "student" / "README.md").read_text() == "second"


def test_student_of_a_users_own_module_is_written_with_its_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model.py").write_text(
        "from torch import nn\n\ndef make(width=8):\n    return nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.ReLU())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    student = load_backbone("module:own_model:make?width=12", weights="random", img_size=32)
    write_student(tmp_path / "student", student, card="")
    written = json.loads((tmp_path / "student" / "config.json").read_text())["attar"]
    assert (tuple(written["mean"]), tuple(written["std"])) == (student.preprocess.mean, student.preprocess.std)
    back = load_backbone(written["reference"], weights=tmp_path / "student" / "model.safetensors", img_size=32)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(back.tokens(images).patch, student.tokens(images).patch, rtol=0, atol=0)


PLAIN_TRANSFORMERS = """
import sys
sys.modules["attar"] = None  # importing attar now fails
import torch
from transformers import AutoImageProcessor, AutoModel
folder, images_file, out = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder)
mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
with torch.no_grad():
    model = AutoModel.from_pretrained(folder).eval()
    torch.save(model((torch.load(images_file) - mean) / std).last_hidden_state, out)
"""


def test_student_of_transformers_loads_with_plain_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=70, patch_size=14
    )
    config.save_pretrained(tmp_path / "model")
    student = load_backbone(f"hf:{tmp_path / 'model'}", weights="random", img_size=56)
    assert library_of(student) == "transformers"
    card, terms = model_card("x", {}, "", library=library_of(student)), licence_named("cc-by-nc-4.0")
    write_student(tmp_path / "student", student, card=card, licence=terms)
    assert "AutoModel.from_pretrained" in (tmp_path / "student" / "README.md").read_text()
    images = torch.rand(2, 3, 56, 56)
    torch.save(images, tmp_path / "images.pt")
    files = [str(tmp_path / name) for name in ("student", "images.pt", "features.pt")]
    done = subprocess.run([sys.executable, "-c", PLAIN_TRANSFORMERS, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    features = torch.load(tmp_path / "features.pt")
    torch.testing.assert_close(features[:, 1:], student.tokens(images).patch, rtol=0, atol=1e-6)
    back = load_backbone(str(tmp_path / "student"))
    assert (back.img_size, back.preprocess) == (56, student.preprocess)
    assert terms_of(back.source) == terms
