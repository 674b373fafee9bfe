"""Text towers of transformers: its own numbers, every key accounted for, and small students in their image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.errors import ModelReferenceError, WeightsError
from attar.models import load_text_tower, load_two_towers, small_text_tower

transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
from small_transformers import KINDS, TEXTS, VISION, WORDS, write  # noqa: E402


def features_of(model: Any, tokens: Tensor) -> Tensor:
    """transformers' own embeddings of token numbers."""
    found = model.get_text_features(input_ids=tokens)
    return found if isinstance(found, Tensor) else found.pooler_output


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_transformers_own(kind: str, tmp_path: Path) -> None:
    """Fails for embeddings before their projection, of another token, or of sentences that are filled up otherwise."""
    model = write(tmp_path, kind)
    tower = load_text_tower(f"hf:{tmp_path}")
    tokens = tower.tokenise(TEXTS)
    assert (tokens.shape, tokens.dtype) == ((3, 8), torch.int64)
    by_letters, by_words = [10, 8, 16, 5, 15, 16, 6, 0], [1, WORDS.index("the"), WORDS.index("sea"), 10, 0, 0, 0, 0]
    assert tokens[1].tolist() == (by_letters if kind == "siglip2" else by_words)
    wanted = features_of(model, tokens)
    assert wanted.std() > 0.01
    torch.testing.assert_close(tower.encode(TEXTS), wanted, rtol=0, atol=1e-5)
    assert tower.encode(TEXTS).shape == (3, tower.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_share_a_space(kind: str, tmp_path: Path) -> None:
    model = write(tmp_path, kind)
    towers = load_two_towers(f"hf:{tmp_path}")
    images = torch.rand(2, 3, 32, 32)
    assert towers.image.embed(images).shape[1] == towers.text.encode(TEXTS).shape[1] == towers.text.embed_dim
    if kind == "clip":
        pixels = (images - towers.image.mean) / towers.image.std
        found = model.get_image_features(pixel_values=pixels)
        found = found if isinstance(found, Tensor) else found.pooler_output
        torch.testing.assert_close(towers.image.embed(images), found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_accounted_for_and_the_learned_scale_kept(kind: str, tmp_path: Path) -> None:
    model = write(tmp_path, kind)
    tower = load_text_tower(f"hf:{tmp_path}")
    passed = {key for key, _ in tower.source.explained}
    assert "logit_scale" in passed
    assert all(key.startswith(("vision_model.", "visual_projection", "logit_")) for key in passed)
    state = load_file(tmp_path / "model.safetensors")
    assert len(state) - len(passed) == len(tower.state_dict())
    assert tower.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    save_file(state | {"logit_scale": torch.tensor([4.75])}, tmp_path / "other.safetensors")
    scale = load_text_tower(f"hf:{tmp_path}", weights=tmp_path / "other.safetensors").logit_scale
    assert scale == pytest.approx(100 if kind == "clip" else math.exp(4.75))  # CLIP's training has a cap


@pytest.mark.parametrize("harm", ["missing", "misshaped", "stray"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_one_key_that_does_not_fit_is_named(kind: str, harm: str, tmp_path: Path) -> None:
    write(tmp_path, kind)
    state = load_file(tmp_path / "model.safetensors")
    key = "text_model.final_layer_norm.weight"
    value = state.pop(key)
    harmed = {
        "missing": {},
        "misshaped": {key: value[1:]},
        "stray": {key: value, "text_model.extra.weight": value.clone()},
    }
    save_file(state | harmed[harm], tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="do not fit") as caught:
        load_text_tower(f"hf:{tmp_path}")
    assert ("extra.weight" if harm == "stray" else "final_layer_norm.weight") in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_student_has_the_tokeniser_and_the_space(kind: str, tmp_path: Path) -> None:
    """Its description in open_clip's words must read these tokens: pooled where they end, or at the last place."""
    pytest.importorskip("open_clip")
    write(tmp_path, kind)
    teacher = load_text_tower(f"hf:{tmp_path}", weights="random", seed=2)
    student = small_text_tower(teacher, depth=1, width=16, num_heads=2)
    assert student.encode(TEXTS).shape == (3, teacher.embed_dim)
    tokens = student.tokenise(["the sea"])
    end = 3 if kind == "clip" else 7
    changed = tokens.clone()
    changed[0, end + 1 :] = 4
    assert torch.equal(student(changed), student(tokens))  # what stands behind the end plays no part
    changed[0, 1] = 5
    assert not torch.equal(student(changed), student(tokens))
    assert student.model.token_embedding.weight.shape == (40, 16)


def test_random_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    write(tmp_path, "siglip")
    first, same, other = (load_text_tower(f"hf:{tmp_path}", weights="random", seed=s).encode(TEXTS) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_directories_without_text_or_tokeniser_are_named(tmp_path: Path) -> None:
    transformers.ViTConfig(**VISION).save_pretrained(tmp_path / "vit")
    with pytest.raises(ModelReferenceError, match="is a model of type vit and has no text tower"):
        load_text_tower(f"hf:{tmp_path / 'vit'}", weights="random")
    write(tmp_path / "clip", "clip")
    for file in (tmp_path / "clip").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelReferenceError, match=r"holds no tokeniser \(tokenizer\.json"):
        load_text_tower(f"hf:{tmp_path / 'clip'}")  # transformers makes one that knows no word
    (tmp_path / "clip" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelReferenceError, match="cannot be read by transformers"):
        load_text_tower(f"hf:{tmp_path / 'clip'}")
    write(tmp_path / "few", "clip", vocab_size=8)
    with pytest.raises(ModelReferenceError, match="has 11 tokens, the text tower 8: it is another model's"):
        load_text_tower(f"hf:{tmp_path / 'few'}", weights="random")
