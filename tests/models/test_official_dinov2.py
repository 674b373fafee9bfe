"""Files in the official DINOv2 layout: every token as the original computes it, every key accounted for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import official_dinov2
import pytest
import torch
from official_dinov2 import random_state
from safetensors.torch import save_file
from torch import Tensor

from attar.models import Backbone, load_backbone

SMALL, SMALL_REG = "vit_small_patch14_dinov2?depth=2", "vit_small_patch14_reg4_dinov2?depth=2"
SLIM, SLIM_REG = (f"vit_small_patch14{reg}_dinov2?depth=1&embed_dim=48&num_heads=3" for reg in ("", "_reg4"))
GIANT, GIANT_REG = (f"vit_giant_patch14{reg}_dinov2?depth=2&embed_dim=192&num_heads=3" for reg in ("", "_reg4"))


def images(size: int, *, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def save(state: dict[str, Tensor], file: Path) -> Path:
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return file


def difference(backbone: Backbone, state: dict[str, Tensor], size: int, *, num_heads: int) -> dict[str, float]:
    """Largest difference between the backbone's tokens and the original's, by kind of token."""
    pixels = images(size)
    tokens, wanted = backbone.tokens(pixels), official_dinov2.forward(state, pixels, num_heads=num_heads)
    assert tokens.patch.shape == wanted["patch"].shape
    assert tokens.prefix.shape == wanted["registers"].shape
    found = {"cls": tokens.cls, "patch": tokens.patch, "registers": tokens.prefix}
    return {name: (found[name] - wanted[name]).abs().amax().item() for name in found if found[name].numel()}


@pytest.mark.parametrize("size", [224, 518])
@pytest.mark.parametrize(
    ("reference", "num_heads", "options"),
    [
        (SMALL, 6, {}),
        (SMALL_REG, 6, {"registers": 4}),
        (GIANT, 3, {"dim": 192, "swiglu": True}),
        (GIANT_REG, 3, {"dim": 192, "swiglu": True, "registers": 4}),
    ],
)
def test_tokens_equal_the_original(reference, num_heads, options, size, tmp_path):
    state = random_state(**options)
    backbone = load_backbone(reference, weights=save(state, tmp_path / "official.pth"), img_size=size)
    assert backbone.grid == (size // 14, size // 14)
    worst = difference(backbone, state, size, num_heads=num_heads)
    assert set(worst) == {"cls", "patch"} | ({"registers"} if "registers" in options else set())
    assert max(worst.values()) <= 1e-4, worst


@pytest.mark.slow
@pytest.mark.parametrize(("name", "registers"), [("vit_small_patch14_dinov2", 0), ("vit_small_patch14_reg4_dinov2", 4)])
def test_tokens_equal_the_original_at_full_depth(name, registers, tmp_path):
    state = random_state(depth=12, registers=registers)
    backbone = load_backbone(name, weights=save(state, tmp_path / "official.pth"), img_size=224)
    assert max(difference(backbone, state, 224, num_heads=6).values()) <= 1e-4


@pytest.mark.parametrize("size", [70, 574])
@pytest.mark.parametrize(("reference", "registers"), [(SLIM, 0), (SLIM_REG, 4)])
def test_other_sizes_follow_the_original_too(reference, registers, size, tmp_path):
    """Far below and above the table's own 37 x 37: the offset moves the sampling points, antialias matters below."""
    state = random_state(dim=48, depth=1, registers=registers)
    backbone = load_backbone(reference, weights=save(state, tmp_path / "official.pth"), img_size=size)
    assert max(difference(backbone, state, size, num_heads=3).values()) <= 1e-4


def test_safetensors_and_torch_files_hold_the_same_model(tmp_path):
    state = random_state()
    files = [save(state, tmp_path / name) for name in ("official.pth", "official.safetensors")]
    first, second = (load_backbone(SMALL, weights=file, img_size=70).tokens(images(70)) for file in files)
    assert torch.equal(first.cls, second.cls)
    assert torch.equal(first.patch, second.patch)


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "teacher", "student"])
def test_a_checkpoint_around_the_state_dict_is_unwrapped(wrapper, tmp_path):
    state = random_state()
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "checkpoint.pth")
    backbone = load_backbone(SMALL, weights=tmp_path / "checkpoint.pth", img_size=70)
    assert max(difference(backbone, state, 70, num_heads=6).values()) <= 1e-4


def test_half_precision_files_load_into_float32(tmp_path):
    """The class token's position is folded into it in float32, not in the file's precision."""
    half = {key: value.half() for key, value in random_state(dim=48, depth=1, registers=4).items()}
    backbone = load_backbone(SLIM_REG, weights=save(half, tmp_path / "half.pth"), img_size=518)
    assert backbone.tokens(images(518)).cls.dtype == torch.float32
    whole = {key: value.float() for key, value in half.items()}
    assert torch.equal(backbone.model.cls_token, whole["cls_token"] + whole["pos_embed"][:, :1])


def test_timm_positions_are_another_formula_without_registers(tmp_path):
    """At 224 px the two ways differ visibly; at the table's own size and with registers they agree."""
    for reference, registers, size, is_same in (
        (SLIM, 0, 224, False),
        (SLIM, 0, 518, True),
        (SLIM_REG, 4, 224, True),
    ):
        file = save(random_state(dim=48, depth=1, registers=registers), tmp_path / "official.pth")
        official, timm = (
            load_backbone(reference, weights=file, img_size=size, pos_embed=how).tokens(images(size)).patch
            for how in ("official", "timm")
        )
        gap = (official - timm).abs().amax().item()
        assert gap <= 1e-4 if is_same else gap > 0.1, (reference, size, gap)


def test_official_positions_also_apply_to_the_same_weights_in_timm_names(tmp_path):
    """timm publishes DINOv2 with its own key names and the raw 37 x 37 table."""
    state = random_state()
    renamed = {key: value for key, value in state.items() if key != "mask_token"}
    backbone = load_backbone(SMALL, weights=save(renamed, tmp_path / "timm.safetensors"), img_size=224)
    assert backbone.source.weights == "timm"
    assert max(difference(backbone, state, 224, num_heads=6).values()) <= 1e-4


@pytest.mark.parametrize(("registers", "layout"), [(0, "dinov2"), (4, "dinov2+registers")])
def test_the_source_accounts_for_the_file(registers, layout, tmp_path):
    file = save(random_state(registers=registers), tmp_path / "official.pth")
    reference = SMALL_REG if registers else SMALL
    source = load_backbone(reference, weights=str(file), img_size=70).source
    assert source.name == reference
    assert source.file == str(file)
    assert source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert source.weights == layout
    assert source.licence == "apache-2.0"
    assert [key for key, reason in source.explained if reason] == ["mask_token"]


def test_the_licence_is_only_claimed_for_dinov2_itself(tmp_path):
    """A network of another shape in the same layout is somebody's own training."""
    file = save(random_state(dim=192), tmp_path / "own.pth")
    own = load_backbone("vit_tiny_patch16_224?patch_size=14&depth=2&init_values=1.0", weights=file, img_size=518)
    assert own.source.weights == "dinov2"
    assert own.source.licence == "unknown"
