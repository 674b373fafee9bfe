"""Official files of every family: they load strictly, mean what the originals mean, and name the key that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import official_dinov2
import official_files as files
import pytest
import timm
import torch
from official_files import State
from safetensors.torch import save_file
from timm.models import convnext, eva, vision_transformer
from torch import Tensor

from attar.errors import WeightsError
from attar.models import load_backbone
from attar.models.official import LAYOUTS
from attar.models.weights import load_weights

TINY = "depth=2&embed_dim=48&num_heads=3"
CLIP = "vit_base_patch16_clip_quickgelu_224?depth=2&embed_dim=128&num_heads=2"
SIGLIP = f"vit_base_patch16_siglip_224?{TINY}&act_layer=gelu_tanh"
DINOV3 = f"vit_small_patch16_dinov3_qkvb?{TINY}"
CONVNEXT = "convnext_tiny.dinov3_lvd1689m?depths=1,1,2,1&dims=8,16,24,32"


def dinov2_state(**options: int) -> State:
    return official_dinov2.random_state(dim=48, side=4, **options)


@dataclass(frozen=True)
class Family:
    """A file of one family and the architecture it belongs to."""

    layout: str
    reference: str
    state: Callable[[], State]
    licence: str
    explained: tuple[str, ...] = ()  # beginnings of the keys that the model has no use for
    patch: int = 16

    @property
    def img_size(self) -> int:
        return 4 * self.patch


TEXT = ("transformer.", "positional_embedding", "token_embedding.", "ln_final.", "text_projection", "logit_scale")
SIZES = ("input_resolution", "context_length", "vocab_size")
BESIDE = ("teacher.", "patch_head.", "token_head.", "fea_head.")

FAMILIES = {
    "dinov2": Family("dinov2", f"vit_small_patch14_dinov2?{TINY}", dinov2_state, "apache-2.0", ("mask_token",), 14),
    "dinov2 registers": Family(
        "dinov2+registers", f"vit_small_patch14_reg4_dinov2?{TINY}", lambda: dinov2_state(registers=4), "apache-2.0",
        ("mask_token",), 14,
    ),
    "dinov3": Family("dinov3", DINOV3, files.dinov3_state, "dinov3-license", ("mask_token",)),
    "dinov3 swiglu": Family(
        "dinov3", f"vit_small_plus_patch16_dinov3_qkvb?{TINY}", lambda: files.dinov3_state(swiglu=True),
        "dinov3-license", ("mask_token",),
    ),
    "dinov3 convnext": Family(
        "dinov3-convnext", CONVNEXT, files.dinov3_convnext_state, "dinov3-license", ("norms.3.",)
    ),
    "openai": Family("openai-clip", CLIP, files.openai_state, "mit", ("visual.proj", *TEXT, *SIZES)),
    "open_clip": Family("open_clip (quick_gelu)", CLIP, files.open_clip_state, "unknown", ("visual.proj", *TEXT)),
    "open_clip module": Family(
        "open_clip (quick_gelu)", CLIP, lambda: files.open_clip_state("module."), "unknown",
        ("module.visual.proj", *(f"module.{key}" for key in TEXT)),
    ),
    "open_clip siglip": Family(
        "open_clip-timm", f"vit_base_patch16_siglip_224?{TINY}", files.open_clip_siglip_state, "unknown",
        ("text.", "logit_scale", "logit_bias"),
    ),
    "siglip": Family("siglip", SIGLIP, files.siglip_state, "apache-2.0", ("params/txt/", "params/t", "params/b")),
    "synclr": Family(
        "synclr", f"vit_base_patch16_224?{TINY}", files.synclr_state, "apache-2.0",
        ("module.visual.mask_token", "module.image_mlp.", "module.logit_scale"),
    ),
    "proteus": Family(
        "proteus", f"vit_small_patch14_dinov2?{TINY}", lambda: files.in_proteus(dinov2_state(), dinov2_state(depth=1)),
        "mit", ("student.backbone.mask_token", *BESIDE), 14,
    ),
    "proteus clip": Family(
        "proteus-clip", CLIP,
        lambda: files.in_proteus(files.clip_visual_state("") | {"mask_token": torch.zeros(1, 128)}, {}),
        "mit", ("student.backbone.mask_token", *BESIDE[1:]),
    ),
    "proteus synclr": Family(
        "proteus-synclr", f"vit_base_patch16_224?{TINY}",
        lambda: files.in_proteus(files.timm_vit_state() | {"mask_token": torch.zeros(1, 1, 48)}, {}),
        "mit", ("student.backbone.mask_token", *BESIDE[1:]),
    ),
}  # fmt: skip

per_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def save(state: State, folder: Path, *, suffix: str = ".pth") -> Path:
    """As the family does: an archive of arrays where the keys are paths, else a torch checkpoint."""
    file = folder / f"official{'.npz' if any('params/' in key for key in state) else suffix}"
    if file.suffix == ".npz":
        np.savez(file, **{key: value.numpy() for key, value in state.items()})
    elif file.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    return file


def build(reference: str, **options: object) -> torch.nn.Module:
    return load_backbone(reference, weights="random", **options).model


# ---- every family


@per_family
def test_a_file_loads_and_each_key_is_used_or_explained(family, tmp_path):
    state = family.state()
    source = load_backbone(family.reference, weights=save(state, tmp_path), img_size=family.img_size).source
    assert (source.weights, source.licence) == (family.layout, family.licence)
    explained = dict(source.explained)
    assert explained.keys() == {key for key in state if key.startswith(family.explained)}
    assert all(explained.values())


def test_no_layout_of_the_list_is_without_a_test():
    tested = {family.layout.partition(" ")[0] for family in FAMILIES.values()}
    assert tested == {layout.name for layout in LAYOUTS}


def renamed(state: State, key: str) -> State:
    return {f"{name}_" if name == key else name: value for name, value in state.items()}


def missing(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


def misshaped(state: State, key: str) -> State:
    return state | {key: torch.cat([state[key]] * 2)}


@pytest.mark.parametrize("change", [renamed, missing, misshaped])
@per_family
def test_one_wrong_key_is_refused_by_its_own_name(family, change, tmp_path):
    """Each kind of key once: those of the second block stand for those of the first."""
    state = family.state()
    model = build(family.reference, img_size=family.img_size)
    explained = load_weights(model, save(state, tmp_path)).explained
    first_block = r"(blocks\.|encoderblock_|stages\.[012]\.)0"
    keys = [key for key in state if key not in explained and not re.search(first_block, key)]
    assert len(keys) > 10
    for key in keys:
        with pytest.raises(WeightsError) as caught:
            load_weights(model, save(change(state, key), tmp_path, suffix=".safetensors"))
        message = str(caught.value)
        assert re.search(rf"(?<![\w./]){re.escape(key)}(?![\w./])", message), (key, message)
        if change is renamed:
            assert f"{key}_" in message, (key, message)


@per_family
def test_a_wrong_prefix_is_an_error_that_shows_the_keys(family, tmp_path):
    state = {f"wrong.{key}": value for key, value in family.state().items()}
    with pytest.raises(WeightsError) as caught:
        load_backbone(family.reference, weights=save(state, tmp_path), img_size=family.img_size)
    assert "wrong." in str(caught.value)
    assert "not in the file: " in str(caught.value)


# ---- tokens equal the original's


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def gap(ours: Tensor, theirs: Tensor) -> float:
    assert theirs.std() > 0.1  # tokens that say something
    return (ours - theirs).abs().max().item()


def all_tokens(backbone) -> Tensor:
    tokens = backbone.tokens(images(backbone.img_size))
    return torch.cat([tokens.cls[:, None], tokens.prefix, tokens.patch], dim=1)


@pytest.mark.parametrize("img_size", [64, 96])
@pytest.mark.parametrize("name", ["dinov3", "dinov3 swiglu"])
def test_dinov3_tokens_equal_the_original(name, img_size, tmp_path):
    """The rounded periods count: timm's own, exact ones give other tokens."""
    family, state = FAMILIES[name], FAMILIES[name].state()
    backbone = load_backbone(family.reference, weights=save(state, tmp_path), img_size=img_size)
    assert gap(all_tokens(backbone), files.dinov3_forward(state, images(img_size), heads=3)) <= 1e-4
    exact = state | {"rope_embed.periods": 100 ** (torch.arange(4) / 4)}
    assert gap(all_tokens(backbone), files.dinov3_forward(exact, images(img_size), heads=3)) > 1e-3


def test_dinov3_without_biases_takes_a_file_whose_biases_are_zero(tmp_path):
    state = files.dinov3_state(bias=0.0)
    backbone = load_backbone(f"vit_small_patch16_dinov3?{TINY}", weights=save(state, tmp_path), img_size=64)
    assert gap(all_tokens(backbone), files.dinov3_forward(state, images(64), heads=3)) <= 1e-4
    assert "blocks.0.attn.qkv.bias" in dict(backbone.source.explained)
    with pytest.raises(WeightsError, match=r"not in the model: blocks\.0\.attn\.qkv\.bias, (.|\n)*ends in _qkvb"):
        load_weights(backbone.model, save(files.dinov3_state(), tmp_path))


def test_dinov3_biases_of_the_keys_must_be_masked(tmp_path):
    state = files.dinov3_state()
    state["blocks.1.attn.qkv.bias_mask"] = torch.ones(144)
    with pytest.raises(WeightsError, match="the keys' third of the masked bias is not zero"):
        load_backbone(DINOV3, weights=save(state, tmp_path), img_size=64)


def test_dinov3_periods_are_refused_where_rotations_were_computed_before(tmp_path):
    file = save(files.dinov3_state(), tmp_path)
    with pytest.raises(WeightsError, match=r"not in the model: rope_embed\.periods\n"):
        load_backbone(f"{DINOV3}&dynamic_img_size=False", weights=file, img_size=64)


def test_dinov3_norm_of_small_crops_is_explained(tmp_path):
    state = files.dinov3_state() | {"local_cls_norm.weight": torch.ones(48), "local_cls_norm.bias": torch.ones(48)}
    source = load_backbone(DINOV3, weights=save(state, tmp_path), img_size=64).source
    assert "local_cls_norm.weight" in dict(source.explained)


def test_dinov3_convnext_tokens_equal_the_original(tmp_path):
    state = files.dinov3_convnext_state()
    backbone = load_backbone(CONVNEXT, weights=save(state, tmp_path), img_size=96)
    assert gap(all_tokens(backbone), files.dinov3_convnext_forward(state, images(96))) <= 1e-4


@pytest.mark.parametrize("name", ["openai", "open_clip", "proteus clip"])
def test_clip_tokens_equal_openais_forward(name, tmp_path):
    family, state = FAMILIES[name], FAMILIES[name].state()
    backbone = load_backbone(family.reference, weights=save(state, tmp_path), img_size=64)
    visual = {re.sub(r"^student\.backbone\.", "visual.", key): value for key, value in state.items()}
    pixels = images(64)
    if name == "proteus clip":  # Proteus normalises by ImageNet's statistics whatever the teacher is
        backbone_pixels = (pixels - files.IMAGENET[0].view(3, 1, 1)) / files.IMAGENET[1].view(3, 1, 1)
        pixels = backbone_pixels * files.OPENAI[1].view(3, 1, 1) + files.OPENAI[0].view(3, 1, 1)
    assert gap(all_tokens(backbone), files.clip_forward(visual, pixels)) <= 1e-4
    assert gap(all_tokens(backbone), files.clip_forward(visual, pixels, is_quick=False)) > 1e-3


@pytest.mark.parametrize("is_quick", [True, False])
def test_clip_tokens_equal_open_clips_tower(is_quick, tmp_path):
    transformer = pytest.importorskip("open_clip.transformer")
    act = transformer.QuickGELU if is_quick else torch.nn.GELU
    torch.manual_seed(0)
    tower = transformer.VisionTransformer(64, 16, 128, 2, 2, 4.0, output_dim=24, act_layer=act, output_tokens=True)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    file = save({f"visual.{key}": value for key, value in tower.state_dict().items()}, tmp_path)
    reference = CLIP if is_quick else CLIP.replace("_quickgelu", "")
    backbone = load_backbone(reference, weights=file, img_size=64)
    assert backbone.source.weights == ("open_clip (quick_gelu)" if is_quick else "open_clip (gelu)")
    tokens = backbone.tokens(images(64))
    with torch.no_grad():
        pooled, patch = tower.eval()((images(64) - backbone.mean) / backbone.std)
    assert gap(tokens.patch, patch) <= 1e-4
    assert gap(tokens.cls @ tower.proj.detach(), pooled) <= 1e-4


def test_siglip_tokens_equal_big_visions_forward(tmp_path):
    state = files.siglip_state()
    backbone = load_backbone(SIGLIP, weights=save(state, tmp_path), img_size=64)
    pooled, patch = files.siglip_forward(state, images(64))
    assert gap(backbone.tokens(images(64)).cls, pooled) <= 1e-4
    assert gap(backbone.tokens(images(64)).patch, patch) <= 1e-4


def test_siglip_blocks_in_one_array_and_bfloat16_are_the_same_model(tmp_path):
    state = {key: value.bfloat16().float() for key, value in files.siglip_state().items()}
    apart = load_backbone(SIGLIP, weights=save(state, tmp_path), img_size=64)
    stacked: dict[str, list[Tensor]] = {}
    for key, value in state.items():
        stacked.setdefault(re.sub(r"img/Transformer/encoderblock_\d+", "img/Transformer/encoderblock", key), []).append(
            value
        )
    halves = {key: torch.stack(rows) if "encoderblock/" in key else rows[0] for key, rows in stacked.items()}
    raw = {key: value.bfloat16().view(torch.int16).numpy().view("V2") for key, value in halves.items()}
    np.savez(tmp_path / "stacked.npz", **raw)
    together = load_backbone(SIGLIP, weights=tmp_path / "stacked.npz", img_size=64)
    assert torch.equal(all_tokens(apart), all_tokens(together))


@pytest.mark.parametrize("name", ["siglip", "open_clip siglip"])
def test_siglip_without_its_pooling_is_explained(name, tmp_path):
    reference = f"vit_base_patch16_siglip_gap_224?{TINY}"
    source = load_backbone(reference, weights=save(FAMILIES[name].state(), tmp_path), img_size=64).source
    reasons = {reason for key, reason in source.explained if "MAPHead" in key or "attn_pool" in key}
    assert reasons == {"pooling by attention; the architecture named has none"}


def test_open_clips_siglip_tokens_equal_its_trunks(tmp_path):
    family = FAMILIES["open_clip siglip"]
    backbone = load_backbone(family.reference, weights=save(family.state(), tmp_path), img_size=64)
    options = {"heads": 3, "statistics": files.HALF, "prefix": "visual.trunk.", "cls": False}
    assert gap(backbone.tokens(images(64)).patch, files.timm_vit_forward(family.state(), images(64), **options)) <= 1e-4


@pytest.mark.parametrize(("name", "prefix"), [("synclr", "module.visual."), ("proteus synclr", "student.backbone.")])
def test_synclr_tokens_equal_the_original(name, prefix, tmp_path):
    """Normalised by ImageNet's statistics, though timm's architecture of that name has others."""
    family, state = FAMILIES[name], FAMILIES[name].state()
    backbone = load_backbone(family.reference, weights=save(state, tmp_path), img_size=64)
    theirs = files.timm_vit_forward(state, images(64), heads=3, statistics=files.IMAGENET, prefix=prefix)
    assert gap(all_tokens(backbone), theirs) <= 1e-4


@pytest.mark.parametrize("text", ["token_embedding.weight", "module.transformer.resblocks.0.ln_1.weight"])
def test_a_vit_with_a_text_tower_is_not_synclrs(text, tmp_path):
    """SLIP's files have the same names for images, and neither SynCLR's licence nor its statistics."""
    file = save(files.synclr_state() | {text: torch.ones(4)}, tmp_path)
    with pytest.raises(WeightsError, match="layout timm, ") as caught:
        load_backbone(f"vit_base_patch16_224?{TINY}", weights=file, img_size=64)
    assert "module.visual.cls_token" in str(caught.value)


@pytest.mark.parametrize(("tag", "mean"), [("", 0.48145466), (".laion2b", 0.5)])
def test_open_clips_files_are_normalised_as_openais_unless_a_tag_says_otherwise(tag, mean, tmp_path):
    """timm's entry without a tag is that of other weights: 0.5 for vit_large_patch14_clip_224."""
    name, size = f"vit_large_patch14_clip_224{tag}?depth=2&embed_dim=128&num_heads=2&patch_size=16", 64
    assert timm.get_pretrained_cfg("vit_large_patch14_clip_224").mean == (0.5,) * 3
    backbone = load_backbone(name, weights=save(files.open_clip_state(), tmp_path), img_size=size)
    assert backbone.preprocess.mean[0] == mean


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_synclr_is_found_under_either_wrapper(wrapper, tmp_path):
    torch.save({wrapper: files.synclr_state(), "epoch": 3}, tmp_path / "synclr.pth")
    backbone = load_backbone(f"vit_base_patch16_224?{TINY}", weights=tmp_path / "synclr.pth", img_size=64)
    assert backbone.source.weights == "synclr"


@pytest.mark.parametrize("size", [56, 70])
def test_proteus_tokens_equal_the_original(size, tmp_path):
    state = files.in_proteus(dinov2_state(), dinov2_state(depth=1))
    torch.save({"model": state, "model_ema": dinov2_state(depth=1), "epoch": 299}, tmp_path / "checkpoint.pth")
    backbone = load_backbone(f"vit_small_patch14_dinov2?{TINY}", weights=tmp_path / "checkpoint.pth", img_size=size)
    theirs = official_dinov2.forward(dinov2_state(), images(size), num_heads=3)
    assert gap(all_tokens(backbone), torch.cat([theirs["cls"][:, None], theirs["patch"]], dim=1)) <= 1e-4


# ---- the activation, which no file tells


def test_openai_weights_are_refused_without_quickgelu(tmp_path):
    reference = CLIP.replace("_quickgelu", "")
    file = save(files.openai_state(), tmp_path)
    with pytest.raises(WeightsError, match=r"openai-clip, trained with QuickGELU.*has gelu.*act_layer=quick_gelu"):
        load_backbone(reference, weights=file, img_size=64)
    backbone = load_backbone(f"{reference}&act_layer=quick_gelu", weights=file, img_size=64)
    assert backbone.source.weights == "openai-clip"


@pytest.mark.parametrize("mark", ["sizes", "float16"])
def test_openai_files_are_told_from_open_clips_by_sizes_or_by_float16(mark, tmp_path):
    state = {key: value for key, value in files.openai_state().items() if mark == "sizes" or key not in SIZES}
    state = {key: value.float() if mark == "sizes" and key not in SIZES else value for key, value in state.items()}
    assert load_weights(build(CLIP, img_size=64), save(state, tmp_path)).layout == "openai-clip"


def test_siglip_in_timms_exact_gelu_says_so(tmp_path):
    reference = f"vit_base_patch16_siglip_224?{TINY}"
    source = load_backbone(reference, weights=save(files.siglip_state(), tmp_path), img_size=64).source
    assert source.weights == "siglip (gelu in place of gelu_tanh)"


# ---- beside timm's own converters, where there are some


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("dinov2", vision_transformer), ("dinov2 registers", vision_transformer), ("dinov3", eva),
     ("dinov3 swiglu", eva), ("dinov3 convnext", convnext), ("openai", vision_transformer),
     ("open_clip module", vision_transformer), ("open_clip siglip", vision_transformer)],
)  # fmt: skip
def test_timms_converter_makes_the_same_model(name, theirs, tmp_path):
    family = FAMILIES[name]
    ours, state = build(family.reference, img_size=family.img_size), family.state()
    load_weights(ours, save(state, tmp_path))
    converted = theirs.checkpoint_filter_fn(dict(state), ours)
    assert ours.state_dict().keys() <= converted.keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(value, converted[key].float()), key


def test_timms_reader_of_archives_makes_the_same_model(tmp_path):
    file = save(files.siglip_state(), tmp_path)
    ours, theirs = (build(SIGLIP, img_size=64) for _ in range(2))
    load_weights(ours, file)
    theirs.load_pretrained(str(file))
    for (key, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_the_named_architectures_exist():
    names = {family.reference.partition("?")[0] for family in FAMILIES.values()}
    assert all(timm.is_model(name) for name in names)


@pytest.mark.parametrize(("more", "heads"), [("", 6), ("&num_heads=12", 12)])
def test_another_number_of_heads_than_the_familys_is_refused(more, heads, tmp_path):
    """Proteus' ViT-Ti under the name of ViT-S: all shapes fit, and the tokens would be those of no model."""
    state = files.in_proteus(official_dinov2.random_state(dim=192, side=4), dinov2_state(depth=1))
    file, reference = save(state, tmp_path), "vit_small_patch14_dinov2?depth=2&embed_dim=192"
    with pytest.raises(WeightsError, match=rf"width 192 have 3 heads, .* has {heads}: .*num_heads=3 into"):
        load_backbone(reference + more, weights=file, img_size=28)
    assert load_backbone(f"{reference}&num_heads=3", weights=file, img_size=28).source.weights == "proteus"


def test_published_weights_keep_their_number_of_heads():
    with pytest.raises(WeightsError, match=r"has its own number of heads too; .* Leave num_heads out"):
        load_backbone("vit_small_patch14_dinov2?num_heads=3", img_size=28)
