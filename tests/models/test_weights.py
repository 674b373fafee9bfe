"""Weight files that do not fit: one clear error that names the key and guesses the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from official_dinov2 import State, random_state
from torch import nn

from attar.errors import WeightsError
from attar.models import load_backbone
from attar.models.weights import load_weights

NAME = "vit_small_patch14_dinov2?depth=2&embed_dim=48&num_heads=3"


def rename(state: State, old: str, new: str) -> State:
    return {new if key == old else key: value for key, value in state.items()}


def without(state: State, key: str) -> State:
    return {name: value for name, value in state.items() if name != key}


WRONG: dict[str, tuple[Callable[[State], State], list[str]]] = {
    "renamed": (
        lambda s: rename(s, "blocks.1.norm2.weight", "blocks.1.norm_2.weight"),
        ["not in the file: blocks.1.norm2.weight", "'blocks.1.norm_2.weight' may be 'blocks.1.norm2.weight'"],
    ),
    "renamed class token": (
        lambda s: rename(s, "cls_token", "class_token"),
        ["not in the file: cls_token", "'class_token' may be 'cls_token'"],
    ),
    "missing": (lambda s: without(s, "blocks.1.attn.proj.bias"), ["not in the file: blocks.1.attn.proj.bias"]),
    "missing positions": (lambda s: without(s, "pos_embed"), ["not in the file: pos_embed"]),
    "misshapen": (
        lambda s: s | {"blocks.0.mlp.fc1.weight": torch.zeros(191, 48)},
        ["blocks.0.mlp.fc1.weight is (191, 48), the model has (192, 48)", "another size"],
    ),
    "misshapen positions": (
        lambda s: s | {"pos_embed": torch.zeros(1, 1369, 48)},
        ["pos_embed is (1, 1369, 48), the model has (1, 26, 48)"],
    ),
    "whole numbers": (
        lambda s: s | {"norm.bias": torch.zeros(48, dtype=torch.int8)},
        ["norm.bias is (48,) of torch.int8, the model has (48,)"],
    ),
    "prefixed": (
        lambda s: {f"net.{key}": value for key, value in s.items()},
        ["Every key starts with 'net.': strip that prefix"],
    ),
    "of DataParallel": (
        lambda s: {f"module.{key}": value for key, value in without(s, "norm.bias").items()},
        ["not in the file: module.norm.bias"],
    ),
    "of transformers": (
        lambda s: {f"encoder.layer.{n}.norm1.bias": torch.zeros(48) for n in range(2)},
        ["names its tensors as transformers does, the model as timm does: refer to the model as hf:DIR"],
    ),
    "extra": (lambda s: s | {"dino_head.weight": torch.zeros(3)}, ["not in the model: dino_head.weight"]),
    "registers": (
        lambda s: s | {"register_tokens": torch.zeros(1, 4, 48)},
        ["not in the model: register_tokens", "(layout dinov2+registers"],
    ),
    "deeper": (lambda s: s | random_state(dim=48, depth=3), ["not in the model: blocks.2.norm1.weight", "and 8 more"]),
    "wider": (lambda s: random_state(dim=96), ["cls_token is (1, 1, 96), the model has (1, 1, 48)", "and 28 more"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_does_not_fit_is_refused_with_its_keys(case, tmp_path):
    change, needles = WRONG[case]
    file = tmp_path / "official.pth"
    torch.save(change(random_state(dim=48)), file)
    with pytest.raises(WeightsError) as caught:
        load_backbone(NAME, weights=file, img_size=70)
    for needle in [str(file), *needles]:
        assert needle in str(caught.value)


def test_registers_missing_from_the_file_are_named(tmp_path):
    torch.save(random_state(dim=48), tmp_path / "official.pth")
    name = "vit_small_patch14_reg4_dinov2?depth=2&embed_dim=48&num_heads=3"
    with pytest.raises(WeightsError, match="not in the file: register_tokens") as caught:
        load_backbone(name, weights=tmp_path / "official.pth", img_size=70)
    assert "pos_embed is (1, 1370, 48), the model has (1, 25, 48)" in str(caught.value)


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path):
    model = nn.Linear(2, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "half.pth")
    with pytest.raises(WeightsError, match="not in the file: bias"):
        load_weights(model, tmp_path / "half.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_prefix_is_suggested_when_only_some_keys_have_it(tmp_path):
    state = random_state(dim=48)
    torch.save(rename(state, "norm.weight", "head.norm.weight") | {"extra": torch.zeros(1)}, tmp_path / "official.pth")
    with pytest.raises(WeightsError) as caught:
        load_backbone(NAME, weights=tmp_path / "official.pth", img_size=70)
    assert "Every key" not in str(caught.value)


@pytest.mark.parametrize("is_official", [True, False])
def test_what_data_parallel_puts_before_every_key_is_taken_off(is_official, tmp_path):
    state = random_state(dim=48) if is_official else without(random_state(dim=48, side=5), "mask_token")
    for name, prefix in (("plain", ""), ("wrapped", "module.")):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / f"{name}.pth")
    plain, wrapped = (
        load_backbone(NAME, weights=tmp_path / f"{name}.pth", img_size=70) for name in ("plain", "wrapped")
    )
    assert plain.source.weights == wrapped.source.weights == ("dinov2" if is_official else "timm")
    assert [f"module.{key}" for key, _ in plain.source.explained] == [key for key, _ in wrapped.source.explained]
    assert torch.equal(plain.tokens(torch.ones(1, 3, 70, 70)).cls, wrapped.tokens(torch.ones(1, 3, 70, 70)).cls)


def test_a_model_that_has_a_module_of_that_name_keeps_it(tmp_path):
    model = nn.Sequential()
    model.module = nn.Linear(2, 2)
    torch.save({"module.weight": torch.ones(2, 2), "module.bias": torch.zeros(2)}, tmp_path / "own.pth")
    load_weights(model, tmp_path / "own.pth")
    assert torch.equal(model.module.weight, torch.ones(2, 2))


def test_the_part_of_a_checkpoint_that_was_taken_is_written_down(tmp_path):
    state = random_state(dim=48)
    torch.save({"model": state, "model_ema": state}, tmp_path / "run.pth")
    backbone = load_backbone(NAME, weights=tmp_path / "run.pth", img_size=70)
    assert backbone.source.weights == "dinov2 (model, not model_ema)"


def test_a_classifier_in_the_file_is_explained_and_left_out(tmp_path):
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "resnet.pth")
    backbone = load_backbone("resnet10t", weights=tmp_path / "resnet.pth", img_size=64)
    assert dict(backbone.source.explained).keys() == {"fc.weight", "fc.bias"}
    pixels = torch.rand(1, 3, 64, 64)
    logits = model.eval()((pixels - backbone.mean) / backbone.std)
    assert torch.allclose(model.fc(backbone.tokens(pixels).cls), logits, atol=1e-5)
