"""`hf:` references: what transformers itself computes, every key accounted for, students that ship as its models."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.errors import ModelReferenceError, ShapeError, WeightsError
from attar.models import Preprocess, load_backbone
from attar.models.positions import resample_positions
from attar.models.transformers import FAMILIES, quiet
from small_models import given_to_adamw, one_pass

transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZED = {**SHAPE, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 8}
CONVNEXT = {"hidden_sizes": [8, 16, 24, 48], "depths": [1, 1, 1, 1], "image_size": 64}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Model", "Dinov2Config", {**SIZED, "layerscale_value": 0.5}),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**SIZED, "num_register_tokens": 3}
    ),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTConfig", {**SIZED, "num_register_tokens": 3}),
    "dinov3_convnext": ("DINOv3ConvNextModel", "DINOv3ConvNextConfig", CONVNEXT),
    "vit": ("ViTModel", "ViTConfig", SIZED),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", SIZED),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", SIZED),
    "siglip2": ("Siglip2VisionModel", "Siglip2VisionConfig", {**SHAPE, "patch_size": 8, "num_patches": 16}),
}  # fmt: skip
NORMS = {"clip": "post_layernorm", "siglip": "post_layernorm", "siglip2": "post_layernorm", "dinov3_vit": "norm"}
NUM_PREFIX = {"dinov2_with_registers": 4, "dinov3_vit": 4, "siglip": 0, "siglip2": 0}
HALF = (0.5, 0.5, 0.5)
TIMMS = "vit_small_patch14_dinov2?patch_size=8&embed_dim=48&depth=2&num_heads=3"


def write_model(folder: Path, cls: str, config: Any, **arguments: Any) -> Any:
    """transformers' own model, saved. Norms, tokens and tables are random, so that none is idle."""
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(5)
        model = getattr(transformers, cls)(config, **arguments).eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or "token" in name or "position" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape)
        model.save_pretrained(folder)
    return model


def write_encoder(folder: Path, name: str, **changes: Any) -> Any:
    cls, config, values = ENCODERS[name]
    return write_model(folder, cls, getattr(transformers, config)(**{**values, **changes}))


def write_clip(folder: Path, **part: int) -> Any:
    parts = {"vision_config": {**SIZED, **part}, "text_config": {**TEXT, **part}}
    config = transformers.CLIPConfig(**parts, projection_dim=24)
    return write_model(folder, "CLIPModel", config)


def images(size: int = 32, *, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def inputs_of(name: str, pixels: Tensor) -> dict[str, Tensor]:
    """What transformers' model of that family is called with."""
    if name != "siglip2":
        return {"pixel_values": pixels}
    patches = torch.nn.functional.unfold(pixels, 8, stride=8)  # (B, 3 * 8 * 8, N)
    patches = patches.unflatten(1, (3, 64)).permute(0, 3, 2, 1).flatten(2)
    side = pixels.shape[-1] // 8
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(len(pixels), side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * len(pixels)),
    }


def normalised(backbone: Any, pixels: Tensor) -> Tensor:
    return (pixels - backbone.mean) / backbone.std


def assert_close(given: Tensor, wanted: Tensor, atol: float = 1e-5) -> None:
    assert given.shape == wanted.shape
    assert wanted.std() > 0.01  # nothing is compared with nothing
    torch.testing.assert_close(given, wanted, rtol=0, atol=atol)


# ---- the same numbers as transformers


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_are_transformers_own(name, tmp_path):
    """Fails for registers among the patches, a norm left out or applied twice, or another class token."""
    model = write_encoder(tmp_path, name)
    backbone = load_backbone(f"hf:{tmp_path}")
    pixels = images(backbone.img_size)
    tokens, output = backbone.tokens(pixels), model(**inputs_of(name, normalised(backbone, pixels)))
    sequence, num_prefix = output.last_hidden_state, NUM_PREFIX.get(name, 1)
    if name == "clip":
        sequence = model.post_layernorm(sequence)
    assert_close(tokens.patch, sequence[:, num_prefix:])
    assert_close(
        tokens.cls, output.pooler_output if output.pooler_output is not None and name != "vit" else sequence[:, 0]
    )
    assert torch.equal(tokens.prefix, sequence[:, 1:num_prefix]) or tokens.prefix.shape[1] > 0
    if num_prefix == 4:
        assert_close(tokens.prefix, sequence[:, 1:4])
    assert torch.equal(backbone.embed(pixels), tokens.cls)
    side = 2 if name == "dinov3_convnext" else 4
    assert (backbone.grid, backbone.patch_size) == ((side, side), 32 if name == "dinov3_convnext" else 8)


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip2"])
def test_muon_leaves_positions_to_adamw(name, tmp_path):
    # tables of (N, D) have the shape of a matrix
    write_encoder(tmp_path, name)
    given = given_to_adamw(load_backbone(f"hf:{tmp_path}"))
    assert [is_given for parameter, is_given in given.items() if "position" in parameter] == [True]
    assert not all(is_given for parameter, is_given in given.items() if parameter.endswith("weight"))


@pytest.mark.parametrize("name", ["dinov2", "clip", "siglip2"])
def test_blocks_are_computed_again_for_the_same_gradients(name, tmp_path):
    write_encoder(tmp_path, name)
    model = load_backbone(f"hf:{tmp_path}")
    gradients, kept = one_pass(model)
    model.recompute_blocks()
    again, kept_now = one_pass(model)
    assert kept_now < 0.8 * kept  # of two blocks
    assert all(torch.equal(one, other) for one, other in zip(gradients, again, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_intermediates_are_hidden_states_and_the_last_one_is_the_tokens(name, tmp_path):
    """Fails when the input of the first block is counted as a layer, or transformers norms the last state itself."""
    model = write_encoder(tmp_path, name)
    backbone = load_backbone(f"hf:{tmp_path}")
    pixels = images(backbone.img_size)
    tokens = backbone.tokens(pixels)
    last, first = backbone.intermediates(pixels, layers=[-1, 0])
    for field in ("cls", "patch", "prefix"):
        torch.testing.assert_close(getattr(last, field), getattr(tokens, field), rtol=0, atol=1e-5)
    states = model(**inputs_of(name, normalised(backbone, pixels)), output_hidden_states=True).hidden_states
    raw = backbone.intermediates(pixels, layers=[0], norm=False)[0]
    if name == "dinov3_convnext":
        assert_close(raw.patch, states[1].flatten(2).mT)
        assert (raw.grid, backbone.intermediates(pixels, layers=[3])[0].grid) == ((16, 16), (2, 2))
    else:
        norm = getattr(model, NORMS.get(name, "layernorm"))
        assert_close(raw.patch, states[1][:, NUM_PREFIX.get(name, 1) :])
        assert_close(first.patch, norm(raw.patch))
    with pytest.raises(ModelReferenceError, match="has layers 0 to"):
        backbone.intermediates(pixels, layers=[9])


@torch.no_grad()
@pytest.mark.parametrize("form", ["whole", "width at the top alone", "encoder and projection"])
def test_clips_embedding_is_projected_and_its_class_token_is_not(form, tmp_path):
    # a whole CLIP goes by the width at the top, and writes 512 beside its parts where nobody said otherwise
    whole = write_clip(tmp_path / "clip", **({} if "top" in form else {"projection_dim": 24}))
    folder = tmp_path / "clip"
    if form == "encoder and projection":
        with quiet():
            encoder = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
            encoder.save_pretrained(folder := tmp_path / "encoder")
    backbone = load_backbone(f"hf:{folder}")
    pixels = normalised(backbone, images())
    assert_close(backbone.embed(images()), whole.get_image_features(pixels).pooler_output)
    assert_close(backbone.tokens(images()).cls, whole.vision_model(pixels).pooler_output)
    assert not backbone.model.model.visual_projection.weight.requires_grad
    explained = {key for key, _ in backbone.source.explained}
    assert explained == (
        {k for k in whole.state_dict() if not k.startswith("vis")} if form != "encoder and projection" else set()
    )


@torch.no_grad()
def test_siglips_embedding_is_what_its_head_pools(tmp_path):
    config = transformers.SiglipConfig(vision_config=SIZED, text_config={**TEXT, "projection_size": 48})
    whole = write_model(tmp_path, "SiglipModel", config)
    backbone = load_backbone(f"hf:{tmp_path}")
    assert_close(backbone.embed(images()), whole.get_image_features(normalised(backbone, images())).pooler_output)
    assert torch.equal(backbone.embed(images()), backbone.tokens(images()).cls)
    write_encoder(tmp_path / "headless", "siglip", vision_use_head=False)
    headless = load_backbone(f"hf:{tmp_path / 'headless'}").tokens(images())
    assert_close(headless.cls, headless.patch.mean(1))


@torch.no_grad()
def test_siglip2_takes_the_patches_that_its_processor_cuts(tmp_path):
    model = write_encoder(tmp_path, "siglip2")
    backbone = load_backbone(f"hf:{tmp_path}", img_size=48)
    pixels = torch.randint(0, 256, (1, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    processor = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=36)
    wanted = model(**processor(pixels, return_tensors="pt"))
    assert_close(backbone.tokens(pixels).patch, wanted.last_hidden_state)
    assert_close(backbone.tokens(pixels).cls, wanted.pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 48])
def test_dinov2_of_transformers_and_of_timm_agree(size, tmp_path):
    """The same weights through two libraries, and positions resampled by one rule."""
    write_encoder(tmp_path, "dinov2")
    state = {}
    for key, value in load_file(tmp_path / "model.safetensors").items():
        key = key.replace("encoder.layer.", "blocks.").replace("layer_scale", "ls").replace("lambda1", "gamma")
        key = key.replace("attention.output.dense", "attn.proj").replace("layernorm.", "norm.")
        key = key.replace("patch_embeddings.projection", "patch_embed.proj").replace("position_embeddings", "pos_embed")
        state[key.removeprefix("embeddings.")] = value
    del state["mask_token"]
    for block in ("blocks.0", "blocks.1"):
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}.attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{kind}"] = torch.cat(parts)
    torch.save(state, tmp_path / "timm.pth")
    reference = "vit_small_patch14_dinov2?embed_dim=48&depth=2&num_heads=3&patch_size=8"
    ours = load_backbone(f"hf:{tmp_path}", img_size=size).tokens(images(size))
    wanted = load_backbone(reference, weights=tmp_path / "timm.pth", img_size=size).tokens(images(size))
    assert_close(ours.cls, wanted.cls)
    assert_close(ours.patch, wanted.patch)


# ---- other input sizes


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "clip", "siglip", "dinov2_with_registers", "dinov3_vit", "siglip2"])
@pytest.mark.parametrize("size", [48, 24])
def test_another_size_is_transformers_own_interpolation(name, size, tmp_path):
    model = write_encoder(tmp_path, name)
    backbone = load_backbone(f"hf:{tmp_path}", img_size=size)
    options = {"interpolate_pos_encoding": True} if name in ("vit", "clip", "siglip") else {}
    wanted = model(**inputs_of(name, normalised(backbone, images(size))), **options).last_hidden_state
    wanted = model.post_layernorm(wanted) if name == "clip" else wanted
    assert backbone.grid == (size // 8, size // 8)
    assert_close(backbone.tokens(images(size)).patch, wanted[:, NUM_PREFIX.get(name, 1) :])


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_images_of_another_size_than_the_models_are_an_error(name, tmp_path):
    write_encoder(tmp_path, name)
    backbone = load_backbone(f"hf:{tmp_path}", img_size=48)
    with pytest.raises(ShapeError, match=r"images are 32x32 px, hf:.* takes 48x48"):
        backbone.tokens(images(32))


def test_dinov2_positions_follow_the_authors_by_default_and_timm_on_demand(tmp_path):
    """transformers itself leaves out the offset of 0.1, so that its tokens at 224 px are not the authors'."""
    table = write_encoder(tmp_path, "dinov2").embeddings.position_embeddings
    tables = {
        how: load_backbone(f"hf:{tmp_path}", img_size=48, pos_embed=how).model.model.embeddings.position_embeddings
        for how in ("official", "timm")
    }
    for how, given in tables.items():
        assert torch.equal(given, resample_positions(table, (6, 6), num_prefix=1, how=how))
    assert not torch.allclose(tables["official"], tables["timm"], atol=1e-3)


@pytest.mark.parametrize("size", [7, -16])
def test_a_size_that_holds_no_patch_is_an_error(size, tmp_path):
    write_encoder(tmp_path, "vit")
    with pytest.raises(ModelReferenceError, match=f"img_size={size} does not hold"):
        load_backbone(f"hf:{tmp_path}", img_size=size)


# ---- files


HARMED = {
    "dinov2": "encoder.layer.1.layer_scale1.lambda1",
    "dinov2_with_registers": "embeddings.register_tokens",
    "dinov3_vit": "layer.0.attention.q_proj.weight",
    "dinov3_convnext": "stages.0.layers.0.depthwise_conv.weight",
    "vit": "encoder.layer.0.attention.attention.query.weight",
    "clip": "embeddings.position_embedding.weight",
    "siglip": "head.attention.in_proj_weight",
    "siglip2": "encoder.layers.0.mlp.fc1.bias",
}


@pytest.mark.parametrize("harm", ["renamed", "missing", "misshaped", "of whole numbers", "stray"])
@pytest.mark.parametrize("name", ENCODERS)
def test_one_key_that_does_not_fit_is_named(name, harm, tmp_path):
    write_encoder(tmp_path, name)
    state, key = load_file(tmp_path / "model.safetensors"), HARMED[name]
    value = state.pop(key)
    if harm == "renamed":
        state[f"{key}_renamed"] = value
    elif harm == "misshaped":
        state[key] = torch.cat([value, value[:1], value[:1]])
    elif harm == "of whole numbers":
        state[key] = value.to(torch.int8)
    elif harm == "stray":
        state |= {key: value, "image_head.weight": value.clone()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="do not fit the model") as caught:
        load_backbone(f"hf:{tmp_path}")
    assert ("image_head.weight" if harm == "stray" else key) in str(caught.value)


def test_images_of_another_range_get_no_embedding(tmp_path):
    write_encoder(tmp_path, "dinov2")
    with pytest.raises(ShapeError, match="images range from 0"):
        load_backbone(f"hf:{tmp_path}").embed(images().mul(255).floor())


def test_timms_file_is_sent_to_timms_architecture(tmp_path):
    write_encoder(tmp_path, "dinov2")
    torch.save(load_backbone(TIMMS, weights="random", img_size=32).model.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(WeightsError, match=r"as timm does, .* as transformers does: .* timm:NAME") as caught:
        load_backbone(f"hf:{tmp_path}", weights=tmp_path / "timm.pth")
    assert "Renamed" not in str(caught.value)


def test_what_data_parallel_puts_before_every_key_is_taken_off(tmp_path):
    state = write_encoder(tmp_path, "dinov2").state_dict()
    torch.save({"model": {f"module.{key}": v for key, v in state.items()}, "model_ema": state}, tmp_path / "run.pth")
    found = load_backbone(f"hf:{tmp_path}", weights=tmp_path / "run.pth")
    assert torch.equal(found.model.model.state_dict()["layernorm.weight"], state["layernorm.weight"])
    assert found.source.weights == "transformers (model, not model_ema)"


def test_a_transformers_without_its_table_of_names_still_refuses_with_its_own(tmp_path, monkeypatch):
    """That table is no part of its public face."""
    monkeypatch.delattr("transformers.core_model_loading.revert_weight_conversion")
    write_encoder(tmp_path, "vit")
    save_file(
        {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if k != "layernorm.bias"},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(WeightsError, match=r"not in the file: layernorm\.bias"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["vit", "clip whole", "dinov3_vit"])
def test_no_key_at_all_may_be_missing(name, tmp_path):
    model = write_clip(tmp_path) if name == "clip whole" else write_encoder(tmp_path, name)
    state = load_file(tmp_path / "model.safetensors")
    pooler_or_text = [key for key in state if key.startswith(("pooler", "text", "logit"))]
    for key in state.keys() - set(pooler_or_text):
        save_file({other: value for other, value in state.items() if other != key}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=re.escape(key)):
            load_backbone(f"hf:{tmp_path}")
    assert len(state) == len(model.state_dict())


def test_classifier_and_pooler_are_explained(tmp_path):
    write_model(tmp_path / "classifier", "ViTForImageClassification", transformers.ViTConfig(**SIZED))
    write_encoder(tmp_path / "pooler", "vit")
    for form in ("classifier", "pooler"):
        source = load_backbone(f"hf:{tmp_path / form}").source
        names = (
            {f"{form}.weight", f"{form}.bias"} if form == "classifier" else {"pooler.dense.weight", "pooler.dense.bias"}
        )
        assert {key for key, _ in source.explained} == names


def test_provenance_is_that_of_the_file(tmp_path):
    write_encoder(tmp_path, "dinov2")
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [vision]\n---\n# A model\n")
    source = load_backbone(f"hf:{tmp_path}").source
    file = tmp_path / "model.safetensors"
    assert (source.name, source.weights, source.licence) == (f"hf:{tmp_path}", "transformers", "apache-2.0")
    assert (source.file, source.sha256) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    cards = {
        "# A model without front matter\n": "unknown",
        "---\nlicense: [a\n---\n": "unknown",
        "---\nlicense: other\nlicense_name: dinov3-license\n---\n": "dinov3-license",
    }
    for card, licence in cards.items():
        (tmp_path / "README.md").write_text(card)
        assert load_backbone(f"hf:{tmp_path}").source.licence == licence


@torch.no_grad()
def test_shards_are_one_model(tmp_path):
    model = write_encoder(tmp_path, "dinov2")
    whole = load_backbone(f"hf:{tmp_path}").tokens(images())
    with quiet():
        model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    backbone = load_backbone(f"hf:{tmp_path / 'shards'}")
    assert torch.equal(backbone.tokens(images()).patch, whole.patch)
    hashes = "".join(hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards)
    assert backbone.source.sha256 == hashlib.sha256(hashes.encode()).hexdigest()
    shards[0].unlink()
    with pytest.raises(WeightsError, match="does not exist"):
        load_backbone(f"hf:{tmp_path / 'shards'}")


@pytest.mark.parametrize("index", ["{bad", "[]", "{}", '{"weight_map": {"a": 3}}', '{"weight_map": {}}'])
def test_an_index_of_shards_that_names_none_is_an_error(index, tmp_path):
    write_encoder(tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json names no files"):
        load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_other_precision_become_float32(dtype, tmp_path):
    write_encoder(tmp_path, "dinov2")
    state = load_file(tmp_path / "model.safetensors")
    torch.save({key: value.to(dtype) for key, value in state.items()}, tmp_path / "other.pth")
    model = load_backbone(f"hf:{tmp_path}", weights=tmp_path / "other.pth").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.model.layernorm.bias, state["layernorm.bias"].to(dtype).float())


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
def test_a_file_that_changes_later_does_not_change_the_model(file, tmp_path):
    """Both kinds are read through a map of the file, which the model's parameters must not be."""
    wanted = write_encoder(tmp_path, "dinov2").layernorm.bias.clone()
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "model.pth")
    model = load_backbone(f"hf:{tmp_path}", weights=tmp_path / file).model
    with (tmp_path / file).open("r+b") as content:
        content.write(bytes((tmp_path / file).stat().st_size))
    assert torch.equal(model.model.layernorm.bias, wanted)


def test_pickles_are_read_only_when_named_and_then_safely(tmp_path):
    model = write_encoder(tmp_path, "dinov2")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"holds no model\.safetensors"):
        load_backbone(f"hf:{tmp_path}")
    named = load_backbone(f"hf:{tmp_path}", weights=tmp_path / "pytorch_model.bin")
    assert torch.equal(named.model.model.layernorm.weight, model.layernorm.weight)
    torch.save({"model": model}, tmp_path / "code.bin")
    with pytest.raises(WeightsError, match="to run code, which attar never does"):
        load_backbone(f"hf:{tmp_path}", weights=tmp_path / "code.bin")


# ---- random weights, statistics, students


def test_random_weights_are_a_function_of_the_seed_alone(tmp_path):
    write_encoder(tmp_path, "dinov2")
    before = torch.get_rng_state()
    first, same, other = (load_backbone(f"hf:{tmp_path}", weights="random", img_size=48, seed=s) for s in (1, 1, 2))
    load_backbone(f"hf:{tmp_path}")
    assert torch.equal(torch.get_rng_state(), before)
    states = [backbone.model.state_dict() for backbone in (first, same, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["model.embeddings.cls_token"], states[2]["model.embeddings.cls_token"])
    assert first.model.encoder.config.image_size == 48
    assert (first.source.weights, first.source.file) == ("random", None)


@pytest.mark.parametrize("name", [*ENCODERS, "whole clip"])
def test_statistics_are_the_directorys_or_else_the_familys(name, tmp_path):
    model = write_clip(tmp_path) if name == "whole clip" else write_encoder(tmp_path, name)
    kind = "clip_vision_model" if name == "whole clip" else model.config.model_type
    assert load_backbone(f"hf:{tmp_path}", weights="random").preprocess == Preprocess(*FAMILIES[kind].statistics)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": HALF}))
    assert load_backbone(f"hf:{tmp_path}", weights="random").preprocess == Preprocess((0.1, 0.2, 0.3), HALF)


def test_statistics_of_a_processor_of_images_and_text_are_found_too(tmp_path):
    """transformers keeps them nested there, and reads that place first."""
    write_encoder(tmp_path, "clip")
    said = {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": HALF}}
    (tmp_path / "processor_config.json").write_text(json.dumps(said))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": HALF, "image_std": HALF}))
    assert load_backbone(f"hf:{tmp_path}", weights="random").preprocess == Preprocess((0.1, 0.2, 0.3), HALF)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert load_backbone(f"hf:{tmp_path}", weights="random").preprocess == Preprocess(HALF, HALF)


def test_a_directory_that_does_not_normalise_is_not_normalised(tmp_path):
    write_encoder(tmp_path, "vit")
    said = {"do_normalize": False, "image_mean": HALF, "image_std": HALF}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert load_backbone(f"hf:{tmp_path}", weights="random").preprocess == Preprocess((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    "said",
    [
        "{bad", "[]", '{"image_mean": 0.5}', '{"image_mean": [0.5]}', '{"image_mean": ["a", "b", "c"]}',
        '{"image_std": [0, 0, 0]}', '{"image_mean": [127.5, 127.5, 127.5]}',
    ],
)  # fmt: skip
def test_statistics_that_are_none_are_an_error(said, tmp_path):
    write_encoder(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text(said)
    with pytest.raises(ModelReferenceError, match=r"preprocessor_config\.json.*three numbers each"):
        load_backbone(f"hf:{tmp_path}", weights="random")


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_hidden_pixels_leave_no_trace_and_seen_ones_do(name, tmp_path):
    write_encoder(tmp_path, name)
    backbone, pixels = load_backbone(f"hf:{tmp_path}"), images()
    if name == "dinov3_convnext":
        assert not backbone.can_mask
        return
    masks = torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) < 0.5
    area = masks.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    token = torch.randn(1, 48, generator=torch.Generator().manual_seed(7))  # a constant one drowns in the first norm
    hidden = backbone(pixels, masks=masks, mask_token=token)
    assert torch.equal(
        hidden.patch, backbone(torch.where(area, 1 - pixels, pixels), masks=masks, mask_token=token).patch
    )
    seen = backbone(torch.where(~area, 1 - pixels, pixels), masks=masks, mask_token=token)
    assert not torch.allclose(hidden.cls, seen.cls, atol=1e-4)
    assert not torch.allclose(hidden.cls, backbone(pixels, masks=masks, mask_token=2 * token).cls, atol=1e-4)
    assert torch.equal(backbone(pixels, masks=torch.zeros_like(masks), mask_token=token).patch, backbone(pixels).patch)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_that_learns_gets_a_gradient(name, tmp_path):
    """A mask token or projection that tokens do not pass would hold up ranks that wait for its gradient."""
    write_encoder(tmp_path, name)
    backbone = load_backbone(f"hf:{tmp_path}", weights="random").train()
    tokens = backbone(images(backbone.img_size))
    (tokens.cls.square().mean() + tokens.patch.square().mean()).backward()
    assert not [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None]


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_a_saved_student_loads_with_plain_transformers(name, tmp_path):
    write_encoder(tmp_path / "model", name)
    size = 64 if name == "dinov3_convnext" else 48
    student = load_backbone(f"hf:{tmp_path / 'model'}", weights="random", img_size=size, seed=3)
    student.model.save(tmp_path / "student", Preprocess((0.1, 0.2, 0.3), HALF), img_size=size)
    options = {"add_pooling_layer": False} if name == "vit" else {}
    with quiet():
        model, info = transformers.AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True, **options)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "student")
    assert not any(info.values())
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), HALF)
    back = load_backbone(str(tmp_path / "student"))  # a directory needs no prefix
    assert back.preprocess == Preprocess((0.1, 0.2, 0.3), HALF)
    assert back.img_size == size or name == "siglip2"  # whose configuration holds no size but its table's
    back = load_backbone(str(tmp_path / "student"), img_size=size)
    student.normalise_with(back.preprocess)
    assert torch.equal(back.tokens(images(size)).patch, student.tokens(images(size)).patch)
    output = model.eval()(**inputs_of(name, normalised(back, images(size)))).last_hidden_state
    output = model.post_layernorm(output) if name == "clip" else output
    assert_close(back.tokens(images(size)).patch, output[:, NUM_PREFIX.get(name, 1) :])
    # as a run does for the student that it ships
    again = load_backbone(f"hf:{tmp_path / 'model'}", weights=tmp_path / "student" / "model.safetensors", img_size=size)
    again.normalise_with(back.preprocess)
    assert torch.equal(again.tokens(images(size)).cls, student.tokens(images(size)).cls)


def test_a_clip_student_ships_without_the_projection_it_left_behind(tmp_path):
    write_clip(tmp_path / "clip")
    student = load_backbone(f"hf:{tmp_path / 'clip'}", img_size=32)
    student.model.save(tmp_path / "student", student.preprocess, img_size=32)
    assert "visual_projection.weight" not in load_file(tmp_path / "student" / "model.safetensors")
    for weights in ("pretrained", tmp_path / "student" / "model.safetensors"):
        where = tmp_path / ("student" if weights == "pretrained" else "clip")
        back = load_backbone(f"hf:{where}", weights=weights)
        assert torch.equal(back.embed(images()), student.tokens(images()).cls)


# ---- wrong references


def test_other_families_point_to_a_factory(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swinv2"}')
    with pytest.raises(ModelReferenceError, match=r"is a model of type swinv2; attar reads dinov2, .* module:package"):
        load_backbone(f"hf:{tmp_path}", weights="random")


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"architecture": "resnet10t"}'])
def test_a_folder_of_another_library_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelReferenceError, match=r"holds no config\.json of transformers"):
        load_backbone(f"hf:{tmp_path}", weights="random")


@pytest.mark.parametrize("changes", [{"patch_size": 0}, {"hidden_size": "wide"}, {"hidden_act": "nowhere"}])
def test_a_configuration_that_makes_no_model_is_an_error(changes, tmp_path):
    write_encoder(tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelReferenceError, match="cannot be"):
        load_backbone(f"hf:{tmp_path}", weights="random")


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "nowhere", "a/b/c", "a/b@", "a/b@c@d", ""])
def test_what_is_neither_folder_nor_repository_is_refused(name):
    with pytest.raises(ModelReferenceError, match="is no folder, and no OWNER/REPOSITORY"):
        load_backbone(f"hf:{name}", weights="random")


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_repository_without_a_network_fails_soon(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(WeightsError, match="'hf:facebook/dinov2-small' could not be fetched from the model hub"):
        load_backbone("hf:facebook/dinov2-small", weights=weights)
    assert time.monotonic() - start < 10


def test_a_repository_is_read_like_a_directory(tmp_path, monkeypatch):
    """The hub's client is stood in for; everything behind it is ours."""
    write_encoder(tmp_path, "dinov2")
    asked = []
    monkeypatch.setattr(
        "attar.models.transformers_folder.snapshot_download",
        lambda name, revision, allow_patterns: asked.append((name, allow_patterns)) or str(tmp_path),
    )
    assert load_backbone("hf:someone/dinov2").source.name == "hf:someone/dinov2"
    load_backbone("hf:someone/dinov2", weights="random")
    assert [name for name, _ in asked] == ["someone/dinov2"] * 2
    assert "model.safetensors" in asked[0][1]
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in asked[1][1])


def test_a_revision_names_the_snapshot(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--dinov2"
    for letter, branch, layers in (("a", "main", 1), ("b", "refs/pr/1", 2)):
        write_encoder(repository / "snapshots" / (letter * 40), "dinov2", num_hidden_layers=layers)
        (repository / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(letter * 40)
    for revision, layers in (("", 1), ("@main", 1), ("@refs/pr/1", 2), (f"@{'b' * 40}", 2)):
        backbone = load_backbone(f"hf:someone/dinov2{revision}")
        assert (backbone.model.depth, backbone.source.name) == (layers, f"hf:someone/dinov2{revision}")
    with pytest.raises(WeightsError, match="'hf:someone/dinov2@v2' could not be fetched"):
        load_backbone("hf:someone/dinov2@v2")


def test_missing_transformers_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelReferenceError, match=re.escape('Try, in the clone of attar: pip install ".[hf]"')):
        load_backbone("hf:somewhere", weights="random")


def test_an_old_transformers_is_refused(monkeypatch):
    monkeypatch.setattr("transformers.__version__", "4.57.6")
    with pytest.raises(ModelReferenceError, match=r"need transformers 5\.6 or newer, 4\.57\.6 is installed"):
        load_backbone("hf:somewhere", weights="random")


def test_transformers_keeps_the_verbosity_it_had():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
