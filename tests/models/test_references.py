"""Model references: what each form means, and one clear sentence for each wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attar.errors import ModelReferenceError
from attar.models import load_backbone
from attar.models.references import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("vit_tiny_patch16_224", Reference("timm", "vit_tiny_patch16_224")),
        ("timm:resnet10t", Reference("timm", "resnet10t")),
        ("vit_small_patch14_dinov2.lvd142m", Reference("timm", "vit_small_patch14_dinov2.lvd142m")),
        ("x?patch_size=14&init_values=1e-5", Reference("timm", "x", {"patch_size": 14, "init_values": 1e-5})),
        (
            "timm:x?a=(1,2)&b=true&c=None&d=gelu",
            Reference("timm", "x", {"a": (1, 2), "b": True, "c": None, "d": "gelu"}),
        ),
        ("x?a=&b=FALSE", Reference("timm", "x", {"a": "", "b": False})),
        ("x?url=a:b", Reference("timm", "x", {"url": "a:b"})),
        ("module:package.mod:factory", Reference("module", "package.mod:factory")),
        ("module:mod:factory?width=3", Reference("module", "mod:factory", {"width": 3})),
        ("open_clip:ViT-B-32?pretrained=openai", Reference("open_clip", "ViT-B-32", {"pretrained": "openai"})),
        ("hf:facebook/dinov2-small", Reference("hf", "facebook/dinov2-small")),
        ("hf:./a?b=1", Reference("hf", "./a?b=1")),
    ],
)
def test_forms(text, wanted):
    assert parse_reference(text) == wanted


def test_timms_name_for_a_folder_is_told_apart():
    with pytest.raises(ModelReferenceError, match="attar takes the folder alone: runs/s/student"):
        parse_reference("local-dir:runs/s/student")


def test_a_reference_is_written_as_it_is_read():
    for text in ("x", "x?a=1&b=(1, 2)&c=True&d=gelu"):
        assert str(parse_reference(text)) == text
        assert parse_reference(str(parse_reference(text))) == parse_reference(text)


def test_a_folder_with_a_config_is_a_model(tmp_path, monkeypatch):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("{}")
    assert parse_reference(str(tmp_path / "student")) == Reference("directory", str(tmp_path / "student"))
    monkeypatch.chdir(tmp_path)
    assert parse_reference("student") == parse_reference("./student") == Reference("directory", "student")
    assert parse_reference("timm:student") == Reference("timm", "student")


def test_the_shipped_teacher_goes_by_one_name_wherever_attar_is_installed(tmp_path, monkeypatch):
    (tmp_path / "playground").mkdir()
    monkeypatch.chdir(tmp_path)
    shipped = parse_reference("playground")
    assert (Path(shipped.name) / "model.safetensors").is_file()
    assert parse_reference("playground?depth=2").arguments == {"depth": 2}
    with pytest.raises(ModelReferenceError, match="holds no config"):  # a folder of that name
        parse_reference("./playground")
    assert load_backbone("playground").source.name == "playground"  # and nothing of this machine


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the model reference is empty. Try vit_small_patch14_dinov2"),
        ("  ", "the model reference is empty"),
        ("openclip:ViT-B-32", "unknown prefix 'openclip'. Did you mean 'open_clip'?"),
        ("tim:resnet10t", "unknown prefix 'tim'. Did you mean 'timm'?"),
        ("modul:a:b", "unknown prefix 'modul'. Did you mean 'module'?"),
        ("https://host/file.pth", "unknown prefix 'https'. Use a timm name"),
        ("module:package.mod", "must look like module:package.mod:factory"),
        ("module:a:b:c", "must look like module:package.mod:factory"),
        ("weights.pth", "A weight file goes with its architecture: NAME with --weights or --teacher-weights FILE"),
        ("model.safetensors", "A weight file goes with its architecture"),
        ("pytorch_model.bin", "A weight file goes with its architecture"),
        ("/nowhere/student", "'/nowhere/student' is no folder"),
        ("runs/nowhere/student", "'runs/nowhere/student' is no folder"),
        ("~/nowhere-at-all", "is no folder"),
        (
            "openai/clip-vit-base-patch32",
            "If it is a repository of the model hub, write hf:openai/clip-vit-base-patch32.",
        ),
        ("folder/weights.pth", "'folder/weights.pth' is no folder. A weight file"),
        ("x?a=1&b=2&a=3", "gives 'a' twice. Keep one."),
    ],
)
def test_wrong_references(text, message):
    with pytest.raises(ModelReferenceError, match=re.escape(message)):
        parse_reference(text)


@pytest.mark.parametrize("options", ["", "?img_size=64", "?img_size=64&depth=2"])
def test_a_misspelt_folder_is_guessed(options, tmp_path):
    (tmp_path / "student").mkdir()
    with pytest.raises(ModelReferenceError, match=r"is no folder\. Did you mean 'student'"):
        parse_reference(f"{tmp_path}/studnet{options}")


def test_a_file_as_reference_is_named_as_such(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"weights")
    with pytest.raises(ModelReferenceError, match="A weight file goes with its architecture"):
        parse_reference(str(tmp_path / "checkpoint"))


def test_a_folder_without_config_says_where_the_student_is(tmp_path):
    with pytest.raises(ModelReferenceError, match=r"holds no config\.json.* else its student/ folder"):
        parse_reference(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vit_smal_patch14_dinov2", "no model 'vit_smal_patch14_dinov2' in timm"),
        ("vit_smal_patch14_dinov2", "Did you mean 'vit_small_patch14_dinov2'?"),
        ("vit_smal_patch14_dinov2.lvd142m", "Did you mean 'vit_small_patch14_dinov2'?"),
        ("playgrund", "Did you mean 'playground'?"),
        ("qqqq", "List them with timm.list_models()"),
        ("vit_small_patch14_dinov2.lvd1", "Invalid pretrained tag (lvd1) for vit_small_patch14_dinov2"),
        ("vit_tiny_patch16_224?depth=two", "model 'vit_tiny_patch16_224?depth=two' cannot be built"),
        ("vit_tiny_patch16_224?num_heads=5", "'vit_tiny_patch16_224?num_heads=5' cannot be built"),
        ("vit_tiny_patch16_224?num_heads=0", "cannot be built"),
        ("vit_tiny_patch16_224?depht=2", "unexpected keyword argument 'depht'"),
        ("vit_tiny_patch16_224?patch_size", "cannot be built"),
        ("resnet10t?img_size=32", "unexpected keyword argument 'img_size'"),
        ("vit_tiny_patch16_224?img_size=64", "and img_size=32 name two input sizes. Keep one."),
    ],
)
def test_references_that_build_no_model(text, message):
    with pytest.raises(ModelReferenceError, match=re.escape(message)):
        load_backbone(text, weights="random", img_size=32)


@pytest.mark.parametrize("img_size", [8, 0, -16])
def test_an_input_size_that_gives_no_patch_is_an_error(img_size):
    with pytest.raises(ModelReferenceError):
        load_backbone("vit_tiny_patch16_224?depth=1", weights="random", img_size=img_size)
