"""Directories of open_clip are model references: both towers, their statistics and their tokeniser, every key used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attar.errors import ModelReferenceError, WeightsError
from attar.utils.io import sha256_file

open_clip = pytest.importorskip("open_clip")
import small_clip  # noqa: E402
import small_models  # noqa: E402
from attar.export import write_two_towers  # noqa: E402
from attar.models import (  # noqa: E402
    load_backbone,
    load_text_tower,
    load_two_towers,
    small_text_tower,
    with_projection,
)
from attar.models.two_towers import has_text_tower  # noqa: E402

WEIGHTS, DESCRIPTION = "open_clip_model.safetensors", "open_clip_config.json"
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a photo of a cat.", "two dogs"]


@pytest.fixture(scope="module")
def towers():
    small_clip.register()
    text = load_text_tower(small_clip.REFERENCE, weights="random", seed=3)
    image = with_projection(small_models.backbone(), 16)
    return image, small_text_tower(text, depth=1, width=8, num_heads=2)


@pytest.fixture(scope="module")
def shipped(towers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "student"
    write_two_towers(folder, *towers, card="", scale=60.0)
    return folder


def copied(shipped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped, tmp_path / "student"))


def change(folder: Path, part: str, **changes) -> None:
    said = json.loads((folder / DESCRIPTION).read_text())
    said[part] |= changes
    (folder / DESCRIPTION).write_text(json.dumps(said))


def test_a_student_comes_back_as_it_was(towers, shipped) -> None:
    image, text = towers
    back = load_two_towers(str(shipped))
    torch.testing.assert_close(back.image.embed(IMAGES), image.embed(IMAGES), rtol=0, atol=1e-5)
    torch.testing.assert_close(back.image.tokens(IMAGES).patch, image.tokens(IMAGES).patch, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.text.encode(TEXTS), text.encode(TEXTS), rtol=0, atol=1e-5)
    assert (back.image.img_size, back.image.patch_size, back.image.preprocess) == (32, 8, image.preprocess)
    assert back.text.logit_scale == pytest.approx(60)
    for tower in (back.image, back.text):
        assert tower.source.sha256 == sha256_file(shipped / WEIGHTS)
        assert tower.source.name == f"open_clip:{shipped}"
    assert has_text_tower(str(shipped))


def test_it_is_a_student_and_a_teacher_once_more(towers, shipped, tmp_path) -> None:
    """What was read can be written again, and its text tower is one that small ones are made after."""
    back = load_two_towers(str(shipped))
    smaller = small_text_tower(back.text, depth=1, width=4, num_heads=1)
    write_two_towers(tmp_path / "again", back.image, smaller, card="", scale=100.0)
    again = load_two_towers(str(tmp_path / "again"))
    torch.testing.assert_close(again.image.embed(IMAGES), towers[0].embed(IMAGES), rtol=0, atol=1e-5)
    assert again.text.model.token_embedding.weight.shape[1] == 4


def test_random_weights_and_a_file_of_ones_own(shipped, tmp_path) -> None:
    random, same, other = (load_two_towers(str(shipped), weights="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(random.image.embed(IMAGES), same.image.embed(IMAGES))
    assert not torch.equal(random.image.embed(IMAGES), other.image.embed(IMAGES))
    assert (random.image.source.weights, random.text.logit_scale) == ("random", None)
    state = {f"module.{key}": value for key, value in load_file(shipped / WEIGHTS).items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "other.pt")
    given = load_two_towers(str(shipped), weights=tmp_path / "other.pt")
    assert torch.equal(given.text.encode(TEXTS), load_text_tower(str(shipped)).encode(TEXTS))
    assert given.image.source.sha256 == sha256_file(tmp_path / "other.pt")


def test_another_input_size_and_the_folders_own_statistics(shipped, tmp_path) -> None:
    folder = copied(shipped, tmp_path)
    change(folder, "preprocess_cfg", mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    backbone = load_backbone(str(folder), img_size=48)
    assert (backbone.img_size, backbone.grid, backbone.preprocess.std) == (48, (6, 6), (0.25, 0.25, 0.25))


@pytest.mark.parametrize("harm", ["missing", "misshaped", "stray"])
@pytest.mark.parametrize("key", ["visual.ln_post.weight", "text.ln_final.weight"])
def test_one_key_that_does_not_fit_is_named(shipped, tmp_path, key, harm) -> None:
    folder = copied(shipped, tmp_path)
    state = load_file(folder / WEIGHTS)
    value = state.pop(key)
    stray = f"{key.partition('.')[0]}.extra"
    harmed = {"missing": {}, "misshaped": {key: value[1:]}, "stray": {key: value, stray: value.clone()}}
    save_file(state | harmed[harm], folder / WEIGHTS)
    with pytest.raises(WeightsError, match="do not fit") as caught:
        load_two_towers(str(folder))
    assert (stray if harm == "stray" else key) in str(caught.value)


def test_openais_weights_are_refused_where_gelu_is_described(shipped, tmp_path) -> None:
    state = load_file(shipped / WEIGHTS) | {"context_length": torch.tensor(12)}
    torch.save(state, tmp_path / "openai.pt")
    with pytest.raises(ModelReferenceError, match=r"trained with QuickGELU, and .* describes a model with GELU"):
        load_text_tower(str(shipped), weights=tmp_path / "openai.pt")


def test_the_folder_is_named_as_it_is(shipped, tmp_path) -> None:
    with pytest.raises(ModelReferenceError, match=re.escape(f"attar takes the folder alone: {shipped}")):
        load_backbone(f"open_clip:local-dir:{shipped}")
    with pytest.raises(ModelReferenceError, match="is a folder with weights of its own"):
        load_backbone(f"{shipped}?pretrained=openai")
    torch.testing.assert_close(
        load_backbone(f"open_clip:{shipped}").embed(IMAGES), load_backbone(str(shipped)).embed(IMAGES)
    )
    folder = copied(shipped, tmp_path)
    (folder / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match=f"{WEIGHTS} does not exist"):
        load_backbone(str(folder))
    (folder / DESCRIPTION).write_text('{"model_cfg": {"embed_dim": 16}}')
    with pytest.raises(ModelReferenceError, match="is not open_clip's description of a model"):
        load_backbone(str(folder))


def test_other_models_have_no_text_tower(tmp_path) -> None:
    assert has_text_tower(small_clip.REFERENCE)
    assert not has_text_tower(small_models.TINY)
    transformers = pytest.importorskip("transformers")
    for kind, name in (("vit", "ViT"), ("clip", "CLIP")):
        getattr(transformers, f"{name}Config")().save_pretrained(tmp_path / kind)
        assert has_text_tower(str(tmp_path / kind)) is (kind == "clip")
        assert has_text_tower(f"hf:{tmp_path / kind}") is (kind == "clip")
