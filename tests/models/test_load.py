"""Loading: random weights by seed, timm's folders, the model hub out of reach, and factories of one's own."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

from attar.errors import ModelReferenceError, WeightsError
from attar.export import write_student
from attar.models import Backbone, Preprocess, load_backbone

TINY = "vit_tiny_patch16_224?depth=1&embed_dim=48&num_heads=3"


def same_weights(a: Backbone, b: Backbone) -> bool:
    first, second = a.model.state_dict(), b.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- random weights


def test_random_weights_are_a_function_of_the_seed_alone():
    first = load_backbone(TINY, weights="random", img_size=32, seed=3)
    torch.rand(17)
    assert same_weights(first, load_backbone(TINY, weights="random", img_size=32, seed=3))
    assert not same_weights(first, load_backbone(TINY, weights="random", img_size=32, seed=4))
    reordered = "timm:vit_tiny_patch16_224?num_heads=3&embed_dim=48&depth=1&img_size=32"
    assert same_weights(first, load_backbone(reordered, weights="random", seed=3))


@pytest.mark.parametrize("reference", [TINY, "resnet10t"])
def test_the_global_generator_is_left_alone(reference):
    before = torch.get_rng_state()
    load_backbone(reference, weights="random", img_size=64)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_weights_have_no_file_and_no_licence():
    source = load_backbone(TINY, weights="random", img_size=32).source
    assert (source.name, source.weights) == (TINY, "random")
    assert (source.file, source.sha256, source.licence, source.explained) == (None, None, None, ())


def test_the_models_own_size_is_the_default():
    assert load_backbone(TINY, weights="random").img_size == 224
    assert load_backbone(f"{TINY}&img_size=48", weights="random").img_size == 48
    assert load_backbone("resnet10t", weights="random").img_size == 176


# ---- folders that timm wrote


def write_folder(folder: Path, *, safe: bool = True, num_classes: int = 3, img_size: int = 64) -> torch.nn.Module:
    arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": img_size}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **arguments)
    torch.nn.init.normal_(model.pos_embed)
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=safe)
    return model.eval()


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_of_timm_loads_with_its_own_weights(safe, tmp_path):
    model = write_folder(tmp_path, safe=safe)
    backbone = load_backbone(str(tmp_path))
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model.forward_features((pixels - 0.5) / 0.5)
    assert backbone.preprocess == Preprocess((0.5,) * 3, (0.5,) * 3)
    assert torch.allclose(backbone.tokens(pixels).cls, wanted[:, 0], atol=1e-5)
    assert torch.allclose(backbone.tokens(pixels).patch, wanted[:, 1:], atol=1e-5)
    file = tmp_path / ("model.safetensors" if safe else "pytorch_model.bin")
    assert backbone.source.file == str(file)
    assert backbone.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert {key for key, _ in backbone.source.explained} == {"head.weight", "head.bias"}


def test_a_folder_takes_another_input_size_random_weights_or_a_file(tmp_path):
    write_folder(tmp_path / "model", num_classes=0)
    at_home = load_backbone(str(tmp_path / "model"))
    larger = load_backbone(str(tmp_path / "model"), img_size=96)
    assert (at_home.grid, larger.grid) == ((4, 4), (6, 6))
    assert torch.equal(at_home.model.norm.weight, larger.model.norm.weight)
    again = load_backbone(str(tmp_path / "model"), weights=tmp_path / "model" / "model.safetensors")
    assert same_weights(at_home, again)
    random = load_backbone(str(tmp_path / "model"), weights="random")
    assert not same_weights(at_home, random)
    (tmp_path / "model").rename(tmp_path / "moved")
    assert same_weights(random, load_backbone(str(tmp_path / "moved"), weights="random"))


def test_positions_in_a_folder_are_resampled_by_its_architecture_not_by_its_name(tmp_path):
    """A folder called dinov2-something that holds another model is resampled timm's way."""
    write_folder(tmp_path / "dinov2-student", num_classes=0)
    named, timm_way = (
        load_backbone(str(tmp_path / "dinov2-student"), img_size=32, pos_embed=how) for how in ("official", "timm")
    )
    assert same_weights(named, timm_way)
    arguments = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 70}
    model = timm.create_model("vit_small_patch14_dinov2", num_classes=0, **arguments)
    torch.nn.init.normal_(model.pos_embed)
    save_for_hf(model, str(tmp_path / "student"), model_args=arguments, safe_serialization=True)
    official, timm_way = (
        load_backbone(str(tmp_path / "student"), img_size=42, pos_embed=how) for how in ("official", "timm")
    )
    assert not same_weights(official, timm_way)


@pytest.mark.parametrize(
    "config",
    ["not json", "[]", "{}", '{"architecture": "vit_nowhere", "pretrained_cfg": {}}', '{"architecture": "resnet10t"}',
     '{"hidden_size": 384}', '{"architecture": 3, "pretrained_cfg": {}}'],
)  # fmt: skip
def test_a_folder_of_another_library_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelReferenceError, match=r"config\.json is not timm's description of a model"):
        load_backbone(str(tmp_path), weights="random")


def test_a_folder_without_weights_is_an_error(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors does not exist"):
        load_backbone(str(tmp_path))


def test_a_folder_whose_arguments_do_not_match_its_weights_is_refused(tmp_path):
    write_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"not in the file: blocks\.1\.norm1\.weight"):
        load_backbone(str(tmp_path))


# ---- published weights


def test_pretrained_without_a_network_fails_soon_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(WeightsError) as caught:
        load_backbone(TINY)
    assert time.monotonic() - start < 10
    assert "pretrained weights of 'vit_tiny_patch16_224' could not be fetched from the model hub" in str(caught.value)
    assert "give a weight file: --weights or --teacher-weights FILE" in str(caught.value)


def test_a_model_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="timm publishes no weights for 'vit_base_patch16_gap_224'"):
        load_backbone("vit_base_patch16_gap_224?depth=1&embed_dim=48&num_heads=3", img_size=32)


def test_published_weights_come_with_hash_and_licence(tmp_path, monkeypatch):
    """The hub's client is stood in for; everything behind it is ours."""
    file = tmp_path / "model.safetensors"
    model = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=48, num_heads=3, num_classes=1000)
    save_file(model.state_dict(), file)
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("attar.models.load.hf_hub_download", lambda *where: asked.append(where) or str(file))
    backbone = load_backbone(TINY, img_size=64)
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "model.safetensors")]
    assert torch.equal(backbone.model.cls_token, model.cls_token)
    assert backbone.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert backbone.source.licence == "apache-2.0"
    assert {key for key, _ in backbone.source.explained} == {"head.weight", "head.bias"}


# ---- factories of one's own

FACTORIES = '''
import torch
from torch import nn
import timm
from attar.types import Tokens

class Patches(nn.Module):
    def __init__(self, width=8, kind="tokens"):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 16, 16)
        self.kind = kind

    def forward(self, pixels):
        image = self.conv(pixels)
        patch = image.flatten(2).mT
        if self.kind == "map":
            return image
        if self.kind == "dict":
            return {"x_norm_clstoken": patch.amax(1), "x_norm_patchtokens": patch}
        return Tokens(patch.amax(1), patch, tuple(image.shape[2:]), patch[:, :0])

class Masked(Patches):
    """Like DINOv2's own module: the mask token is a parameter, and LayerScale has the official name."""
    def __init__(self):
        super().__init__()
        self.mask_token = nn.Parameter(torch.ones(1, 8))
        self.blocks = nn.ModuleList([nn.ModuleDict({"ls1": nn.ParameterDict({"gamma": nn.Parameter(torch.ones(8))})})])

def vit(depth=1):
    return timm.create_model("vit_tiny_patch16_224", depth=depth, embed_dim=48, num_heads=3, img_size=64, num_classes=0)

def text():
    return "no module"

number = 3
'''


@pytest.fixture
def factories(tmp_path, monkeypatch) -> str:
    name = f"factories_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("kind", ["tokens", "dict", "map"])
def test_a_factory_may_return_tokens_a_dictionary_or_a_map(kind, factories):
    reference = f"module:{factories}:Patches?kind={kind}&width=12"
    backbone = load_backbone(reference, weights="random", img_size=64, seed=5)
    pixels = torch.rand(2, 3, 64, 64)
    tokens = backbone.tokens(pixels)
    assert (backbone.embed_dim, backbone.grid, backbone.patch_size, backbone.can_mask) == (12, (4, 4), 16, False)
    with torch.no_grad():
        patch = backbone.model.conv((pixels - backbone.mean) / backbone.std).flatten(2).mT
    assert torch.equal(tokens.patch, patch)
    assert torch.equal(tokens.cls, patch.mean(1) if kind == "map" else patch.amax(1))
    assert (backbone.source.name, backbone.source.weights) == (reference, "factory")
    assert same_weights(backbone, load_backbone(reference, weights="random", img_size=64, seed=5))


def test_a_timm_model_from_a_factory_is_one_of_timms(factories):
    backbone = load_backbone(f"module:{factories}:vit", weights="random")
    assert (backbone.img_size, backbone.grid, backbone.can_mask) == (64, (4, 4), True)
    assert backbone.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_factory_takes_a_weight_file_strictly(factories, tmp_path):
    source = load_backbone(f"module:{factories}:Patches", weights="random", img_size=64, seed=1)
    torch.save(source.model.state_dict(), tmp_path / "own.pth")
    loaded = load_backbone(f"module:{factories}:Patches", weights=tmp_path / "own.pth", img_size=64)
    assert same_weights(source, loaded)
    assert (loaded.source.weights, loaded.source.licence) == ("timm", "unknown")
    assert loaded.source.sha256 == hashlib.sha256((tmp_path / "own.pth").read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=r"conv\.weight is \(8, 3, 16, 16\), the model has \(9, 3, 16, 16\)"):
        load_backbone(f"module:{factories}:Patches?width=9", weights=tmp_path / "own.pth", img_size=64)


def test_a_folder_of_a_students_own_module_names_the_reference_to_load_it_by(tmp_path):
    """It runs somebody's code, so that a folder alone must not do it."""
    content = {"attar": {"reference": "module:mine:net", "mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelReferenceError, match=r"module:mine:net.*--teacher-weights .*model\.safetensors"):
        load_backbone(str(tmp_path))


def test_a_student_of_ones_own_module_is_normalised_as_it_learned(factories, tmp_path):
    reference = f"module:{factories}:Patches"
    student = load_backbone(reference, weights="random", img_size=64)
    student.normalise_with(Preprocess((0.5,) * 3, (0.25,) * 3))
    write_student(tmp_path / "student", student, card="")
    file = tmp_path / "student" / "model.safetensors"
    assert load_backbone(reference, weights=file, img_size=64).preprocess == student.preprocess
    file.rename(tmp_path / "alone.safetensors")
    alone = load_backbone(reference, weights=tmp_path / "alone.safetensors", img_size=64)
    assert alone.preprocess == Preprocess()


def test_a_module_with_official_names_takes_an_official_file_as_it_is(factories, tmp_path):
    """DINOv2's own code as a factory: its keys must not be translated into timm's."""
    source = load_backbone(f"module:{factories}:Masked", weights="random", img_size=64, seed=1)
    torch.save(source.model.state_dict(), tmp_path / "own.pth")
    loaded = load_backbone(f"module:{factories}:Masked", weights=tmp_path / "own.pth", img_size=64, seed=2)
    assert same_weights(source, loaded)
    assert loaded.source.explained == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere_at_all:factory", "module 'nowhere_at_all' cannot be imported: No module named 'nowhere_at_all'"),
        (":factory", "module '' cannot be imported"),
        ("{}:Patchs", "has no factory 'Patchs'. Did you mean 'Patches'?"),
        ("{}:number", "has no factory 'number'."),
        ("{}:text", "returned a str, not a torch.nn.Module"),
        ("{}:Patches?depth=2", "does not fit its factory: got an unexpected keyword argument 'depth'"),
    ],
)
def test_factories_that_do_not_work(name, message, factories):
    with pytest.raises(ModelReferenceError) as caught:
        load_backbone("module:" + name.format(factories), weights="random", img_size=64)
    assert message in str(caught.value)
