"""`open_clip:` references: what open_clip itself computes, every key accounted for, and no text tower."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attar.errors import ModelReferenceError, ShapeError, WeightsError
from attar.models import Preprocess, load_backbone
from attar.models.references import Reference
from small_models import given_to_adamw, one_pass

open_clip = pytest.importorskip("open_clip")

VIT = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8}
TIMM = {"image_size": 64, "timm_model_pretrained": False}
VISION: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit-quickgelu": VIT,
    "average": {**VIT, "pool_type": "avg", "no_ln_pre": True},
    "norm-late": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "timm-vit": {**TIMM, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
    "timm-convnext": {**TIMM, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear"},
    "coca": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2},
}
TRANSFORMERS = ["vit", "vit-quickgelu", "average", "norm-late"]
TOWERS = [*TRANSFORMERS, "resnet", "timm-vit", "timm-convnext"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory) -> None:
    """Small models beside open_clip's own, called `attar-…`."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in VISION.items():
        text = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "quick_gelu": name.endswith("quickgelu")}
        (folder / f"attar-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def whole_model(name: str, file: Path, **options: Any) -> Any:
    """open_clip's own model, its state dict in `file`. Norms are random, so that none is idle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.create_model(name, **options).eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.data += 0.2 * torch.randn(parameter.shape)
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer += 0.2 * torch.rand(buffer.shape)
    torch.save(model.state_dict(), file)
    return model


def images(size: int, *, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def assert_close(given: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    assert given.shape == wanted.shape
    assert wanted.std() > 0.01  # nothing is compared with nothing
    torch.testing.assert_close(given, wanted, rtol=0, atol=atol)


# ---- the same numbers as open_clip


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_the_embedding_is_open_clips_own(name, tmp_path):
    model = whole_model(f"attar-{name}", tmp_path / "clip.pt")
    backbone = load_backbone(f"open_clip:attar-{name}", weights=tmp_path / "clip.pt")
    pixels = images(backbone.img_size)
    assert_close(backbone.embed(pixels), model.encode_image(normalised(pixels)))


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_cls_and_patches_are_open_clips_before_the_projection(name, tmp_path):
    """Fails for a class token after the projection, before the norm, or under the other activation."""
    model = whole_model(f"attar-{name}", tmp_path / "clip.pt")
    backbone = load_backbone(f"open_clip:attar-{name}", weights=tmp_path / "clip.pt")
    tokens = backbone.tokens(images(32))
    visual = copy.deepcopy(model.visual)
    visual.proj, visual.output_tokens = None, True
    pooled, patch = visual(normalised(images(32)))
    assert_close(tokens.cls, pooled)
    assert_close(tokens.patch, visual.ln_post(patch) if name == "norm-late" else patch)
    assert (tokens.grid, tokens.prefix.shape, backbone.patch_size) == ((4, 4), (2, 0, 48), 8)
    assert_close(tokens.cls @ model.visual.proj, model.encode_image(normalised(images(32))))


@pytest.mark.parametrize("name", ["vit", "timm-vit"])
def test_muon_leaves_positions_to_adamw(name):
    # tables of (N, D) have the shape of a matrix
    given = given_to_adamw(load_backbone(f"open_clip:attar-{name}", weights="random"))
    table = "positional_embedding" if name == "vit" else "pos_embed"
    assert [is_given for parameter, is_given in given.items() if parameter.endswith(table)] == [True]
    assert not all(is_given for parameter, is_given in given.items() if parameter.endswith("weight"))


@pytest.mark.parametrize("name", ["vit", "timm-vit"])
def test_blocks_are_computed_again_for_the_same_gradients(name):
    model = load_backbone(f"open_clip:attar-{name}", weights="random")
    gradients, kept = one_pass(model)
    model.recompute_blocks()
    again, kept_now = one_pass(model)
    assert kept_now < 0.8 * kept  # of two blocks
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@torch.no_grad()
def test_quickgelu_is_told_from_gelu(tmp_path):
    """The comparison above would notice the wrong activation."""
    whole_model("attar-vit", tmp_path / "clip.pt")
    plain, quick = (
        load_backbone(f"open_clip:{n}", weights=tmp_path / "clip.pt") for n in ("attar-vit", "attar-vit-quickgelu")
    )
    assert (plain.tokens(images(32)).cls - quick.tokens(images(32)).cls).abs().max() > 1e-3


@torch.no_grad()
def test_a_timm_tower_gives_its_trunks_tokens(tmp_path):
    model = whole_model("attar-timm-vit", tmp_path / "clip.pt")
    backbone = load_backbone("open_clip:attar-timm-vit", weights=tmp_path / "clip.pt")
    tokens = backbone.tokens(images(160))
    wanted = model.visual.trunk.forward_features(normalised(images(160)))
    assert_close(tokens.cls, wanted[:, 0])
    assert_close(tokens.patch, wanted[:, -100:])
    assert_close(model.visual.head(tokens.cls), model.encode_image(normalised(images(160))))
    larger = load_backbone("open_clip:attar-timm-vit", weights=tmp_path / "clip.pt", img_size=192)
    model.visual.set_input_size(192)
    assert_close(larger.embed(images(192)), model.encode_image(normalised(images(192))))


@torch.no_grad()
def test_a_resnet_gives_its_last_map(tmp_path):
    model = whole_model("attar-resnet", tmp_path / "clip.pt")
    backbone = load_backbone("open_clip:attar-resnet", weights=tmp_path / "clip.pt")
    tokens = backbone.tokens(images(64))
    found = model.visual.forward_intermediates(normalised(images(64)))["image_intermediates"]
    assert_close(tokens.patch, found[-1].flatten(2).mT)
    assert_close(tokens.cls, found[-1].mean((2, 3)))
    assert (tokens.grid, backbone.patch_size, backbone.can_mask) == ((2, 2), 32, False)
    second = backbone.intermediates(images(64), layers=[1])[0]
    assert_close(second.patch, found[1].flatten(2).mT)
    assert second.grid == (16, 16)


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "norm-late"])
def test_intermediates_are_open_clips_and_the_last_one_is_the_tokens(name, tmp_path):
    model = whole_model(f"attar-{name}", tmp_path / "clip.pt")
    backbone = load_backbone(f"open_clip:attar-{name}", weights=tmp_path / "clip.pt")
    tokens = backbone.tokens(images(32))
    last, first = backbone.intermediates(images(32), layers=[-1, 0])
    raw = backbone.intermediates(images(32), layers=[0], norm=False)[0]
    found = model.visual.forward_intermediates(normalised(images(32)), output_fmt="NLC", output_extra_tokens=True)
    assert_close(last.cls, tokens.cls)
    assert_close(last.patch, tokens.patch)
    assert_close(raw.patch, found["image_intermediates"][0])
    assert_close(raw.cls, found["image_intermediates_prefix"][0][:, 0])
    assert_close(first.patch, model.visual.ln_post(raw.patch))
    with pytest.raises(ModelReferenceError, match="has layers 0 to 1"):
        backbone.intermediates(images(32), layers=[2])


@torch.no_grad()
@pytest.mark.parametrize(("name", "size"), [("vit", 64), ("vit", 24), ("average", 48)])
def test_positions_are_resampled_as_open_clip_does(name, size, tmp_path):
    whole_model(f"attar-{name}", tmp_path / "clip.pt")
    wanted = open_clip.create_model(f"attar-{name}", pretrained=str(tmp_path / "clip.pt"), force_image_size=size).eval()
    backbone = load_backbone(f"open_clip:attar-{name}", weights=tmp_path / "clip.pt", img_size=size)
    assert backbone.grid == (size // 8, size // 8)
    assert_close(backbone.embed(images(size)), wanted.encode_image(normalised(images(size))))
    with pytest.raises(ShapeError, match=f"images are 40x40 px, open_clip:attar-{name} takes {size}x{size}"):
        backbone.tokens(images(40))
    with pytest.raises(ShapeError, match="images are 40x40 px"):
        backbone.embed(images(40))


@torch.no_grad()
@pytest.mark.parametrize(("name", "size", "width"), [("vit", 32, 48), ("timm-vit", 160, 64)])
def test_hidden_patches_leave_no_trace(name, size, width):
    """Which towers embed each patch by itself is also how sizes that leave a rest of pixels are found."""
    backbone, pixels = load_backbone(f"open_clip:attar-{name}", weights="random"), images(size)
    masks = torch.rand(2, backbone.grid[0] ** 2, generator=torch.Generator().manual_seed(0)) < 0.5
    area = masks.view(-1, 1, *backbone.grid)
    area = area.repeat_interleave(backbone.patch_size, 2).repeat_interleave(backbone.patch_size, 3)
    token = torch.randn(1, width, generator=torch.Generator().manual_seed(7))
    hidden, other, seen = (
        backbone(torch.where(where, 1 - pixels, pixels), masks=masks, mask_token=token).patch
        for where in (torch.zeros_like(area), area, ~area)
    )
    assert torch.equal(hidden, other)
    assert not torch.allclose(hidden, seen, atol=1e-4)


def test_a_resnets_pooling_is_resampled_too(tmp_path):
    whole_model("attar-resnet", tmp_path / "clip.pt")
    backbone = load_backbone("open_clip:attar-resnet", weights=tmp_path / "clip.pt", img_size=96)
    assert backbone.grid == (3, 3)
    assert backbone.embed(images(96)).shape == (2, 32)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu"])
def test_a_real_architecture_gives_what_open_clip_gives(name, tmp_path):
    model = whole_model(name, tmp_path / "clip.pt")
    backbone = load_backbone(f"open_clip:{name}", weights=tmp_path / "clip.pt")
    pixels = images(224)
    wanted = model.encode_image(normalised(pixels))
    model.visual.proj = None
    assert_close(backbone.embed(pixels), wanted)
    assert_close(backbone.tokens(pixels).cls, model.visual(normalised(pixels)))
    assert (backbone.embed_dim, backbone.grid, backbone.num_parameters) == (768, (7, 7), 87_849_216)


# ---- files


def test_the_text_tower_is_explained_and_not_kept(tmp_path):
    model = whole_model("attar-vit", tmp_path / "clip.pt")
    backbone = load_backbone("open_clip:attar-vit", weights=tmp_path / "clip.pt")
    assert backbone.num_parameters == sum(p.numel() for p in model.visual.parameters())
    source = backbone.source
    text = {key for key in model.state_dict() if not key.startswith("visual.")}
    assert {key for key, _ in source.explained} == text
    assert (source.name, source.weights, source.licence) == ("open_clip:attar-vit", "open_clip", "unknown")
    assert source.sha256 == hashlib.sha256((tmp_path / "clip.pt").read_bytes()).hexdigest()


@torch.no_grad()
@pytest.mark.parametrize("form", ["visual alone", "half precision", "training checkpoint", "safetensors", "OpenAI"])
def test_forms_of_files_that_are_one_model(form, tmp_path):
    model = whole_model("attar-vit-quickgelu", tmp_path / "clip.pt")
    state, file = model.state_dict(), tmp_path / "other.pt"
    if form == "visual alone":
        torch.save(model.visual.state_dict(), file)
    elif form == "half precision":
        torch.save({key: value.half() for key, value in state.items()}, file)
    elif form == "training checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    elif form == "OpenAI":
        sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 20}
        torch.save(state | {key: torch.tensor(value) for key, value in sizes.items()}, file)
    else:
        file = tmp_path / "other.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    given, wanted = (load_backbone("open_clip:attar-vit-quickgelu", weights=f) for f in (file, tmp_path / "clip.pt"))
    tolerance = 1e-2 if form == "half precision" else 0
    assert_close(given.embed(images(32)), wanted.embed(images(32)), tolerance)


@pytest.mark.parametrize("harm", ["renamed", "missing", "misshaped", "of whole numbers", "stray"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vit", "conv1.weight"),
        ("vit", "transformer.resblocks.1.attn.in_proj_bias"),
        ("vit", "positional_embedding"),
        ("resnet", "attnpool.k_proj.weight"),
        ("timm-vit", "trunk.blocks.0.attn.qkv.weight"),
        ("timm-vit", "head.proj.weight"),
    ],
)
def test_one_key_that_does_not_fit_is_named(name, key, harm, tmp_path):
    state = whole_model(f"attar-{name}", tmp_path / "clip.pt").state_dict()
    value = state.pop(f"visual.{key}")
    if harm == "renamed":
        state[f"visual.{key}_renamed"] = value
    elif harm == "misshaped":
        state[f"visual.{key}"] = torch.cat([value, value[:1], value[:1]])
    elif harm == "of whole numbers":
        state[f"visual.{key}"] = value.to(torch.int8)
    elif harm == "stray":
        state |= {f"visual.{key}": value, "image_head.weight": value}
    torch.save(state, tmp_path / "harmed.pt")
    with pytest.raises(WeightsError, match="do not fit the model") as caught:
        load_backbone(f"open_clip:attar-{name}", weights=tmp_path / "harmed.pt")
    assert ("image_head.weight" if harm == "stray" else key) in str(caught.value)


def test_random_weights_are_a_function_of_the_seed():
    first, same, other = (load_backbone("open_clip:attar-vit", weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.model.visual.proj, same.model.visual.proj)
    assert not torch.equal(first.model.visual.proj, other.model.visual.proj)
    assert (first.source.weights, first.source.file, first.source.licence) == ("random", None, None)


# ---- statistics and published weights


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("attar-vit", MEAN, STD), ("ViT-B-16-SigLIP", (0.5,) * 3, (0.5,) * 3), ("ViT-L-14", MEAN, STD)],
)
def test_statistics_are_those_of_the_published_weights(name, mean, std):
    """ViT-L-14 has published weights with one and with the other; without a tag it is OpenAI's."""
    from attar.models.open_clip import _preprocess

    assert _preprocess(open_clip, Reference("open_clip", name), None) == Preprocess(mean, std)


def test_statistics_follow_the_tag():
    from attar.models.open_clip import _preprocess

    assert _preprocess(open_clip, Reference("open_clip", "ViT-L-14"), "laion2b_s32b_b82k").mean == (0.5, 0.5, 0.5)
    assert _preprocess(open_clip, Reference("open_clip", "ViT-L-14"), "openai").mean == MEAN


def test_published_weights_without_a_network_fail_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    published = {"attar-vit": {"tiny": {"hf_hub": "nobody/attar-tiny/", "mean": MEAN, "std": STD}}}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", published)
    start = time.monotonic()
    with pytest.raises(WeightsError, match="weights 'tiny' of open_clip:attar-vit could not be fetched") as caught:
        load_backbone("open_clip:attar-vit")  # the only tag
    assert time.monotonic() - start < 10
    assert "give a weight file" in str(caught.value)


@torch.no_grad()
def test_published_weights_come_by_their_tag(tmp_path, monkeypatch):
    """open_clip's table of published weights is stood in for; it may name a file."""
    model = whole_model("attar-vit", tmp_path / "clip.pt")
    entry = {"file": str(tmp_path / "clip.pt"), "mean": MEAN, "std": STD}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {"attar-vit": {"one": entry, "two": {}}})
    backbone = load_backbone("open_clip:attar-vit?pretrained=one")
    assert_close(backbone.embed(images(32)), model.encode_image(normalised(images(32))))
    assert backbone.source.name == "open_clip:attar-vit?pretrained=one"


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-B-23", "random", "no model 'ViT-B-23' in open_clip"),
        ("ViT-B-23", "random", "Did you mean 'ViT-B-32'?"),
        ("hf-hub:someone/model", "random", "no model 'hf-hub:someone/model' in open_clip"),
        ("attar-vit?width=3", "random", "'width' is no argument. Only pretrained is."),
        ("attar-vit", "pretrained", "must say which published weights: ?pretrained=TAG. open_clip publishes none"),
        ("ViT-B-32", "pretrained", "must say which published weights: ?pretrained=TAG. Known: openai, "),
        ("ViT-B-32?pretrained=laion", "pretrained", "has no published weights 'laion'. Known: openai, "),
        ("ViT-B-32?pretrained=openai", "random", "and weights=random names others. Keep one."),
        ("attar-coca", "random", "pools its patches into other tokens (CoCa)"),
    ],
)
def test_references_that_name_no_weights_or_no_model(name, weights, message):
    with pytest.raises(ModelReferenceError, match=re.escape(message)):
        load_backbone(f"open_clip:{name}", weights=weights)


@pytest.mark.parametrize(("name", "is_quick"), [("attar-vit", True), ("attar-vit-quickgelu", False)])
def test_weights_of_the_other_activation_are_refused(name, is_quick, tmp_path, monkeypatch):
    whole_model(name, tmp_path / "clip.pt")
    entry = {"file": str(tmp_path / "clip.pt"), "quick_gelu": is_quick}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", {name: {"tag": entry}})
    with pytest.raises(ModelReferenceError, match="these weights were trained with"):
        load_backbone(f"open_clip:{name}?pretrained=tag")


def test_openais_own_files_are_refused_by_a_model_with_gelu(tmp_path):
    state = whole_model("attar-vit", tmp_path / "clip.pt").state_dict()
    torch.save(state | {"input_resolution": torch.tensor(32)}, tmp_path / "openai.pt")
    with pytest.raises(ModelReferenceError, match="Try open_clip:attar-vit-quickgelu"):
        load_backbone("open_clip:attar-vit", weights=tmp_path / "openai.pt")


def test_matrices_in_float16_beside_norms_in_float32_are_openais_too(tmp_path):
    """Its files without the sizes, by the rule that `attar.models.official` has for all architectures."""
    state = whole_model("attar-vit", tmp_path / "clip.pt").state_dict()
    torch.save({k: v.half() if v.ndim > 1 else v for k, v in state.items()}, tmp_path / "openai.pt")
    with pytest.raises(ModelReferenceError, match="Try open_clip:attar-vit-quickgelu"):
        load_backbone("open_clip:attar-vit", weights=tmp_path / "openai.pt")


def test_a_deeper_tower_alone_is_not_taken_for_a_text_tower(tmp_path):
    state = whole_model("attar-vit", tmp_path / "clip.pt").visual.state_dict()
    extra = "transformer.resblocks.2.ln_1.weight"
    torch.save(state | {extra: torch.ones(48)}, tmp_path / "deeper.pt")
    with pytest.raises(WeightsError, match=f"not in the model: {re.escape(extra)}"):
        load_backbone("open_clip:attar-vit", weights=tmp_path / "deeper.pt")


def test_another_open_clip_whose_parts_have_other_names_is_an_error(monkeypatch):
    monkeypatch.delattr("open_clip.model._build_vision_tower")
    with pytest.raises(ModelReferenceError, match=r"'open_clip:attar-vit' cannot be built: .*_build_vision_tower"):
        load_backbone("open_clip:attar-vit", weights="random")


def test_a_missing_open_clip_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelReferenceError, match=re.escape('Try, in the clone of attar: pip install ".[vl]"')):
        load_backbone("open_clip:ViT-B-32", weights="random")


def test_other_models_import_neither_open_clip_nor_transformers():
    code = (
        "import sys; from attar.models import load_backbone;"
        "load_backbone('vit_tiny_patch16_224?depth=1', weights='random', img_size=32);"
        "print(sorted({'open_clip', 'transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
