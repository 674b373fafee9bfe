"""Text towers of open_clip: its own numbers from every form of file, every key accounted for, and no image tower."""

from __future__ import annotations

import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attar.errors import ModelReferenceError, WeightsError
from attar.evaluation.zero_shot import text_classifier, zero_shot_logits
from attar.models import load_backbone, load_text_tower

open_clip = pytest.importorskip("open_clip")

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 48, "head_width": 16, "patch_size": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "words": {},
    "words-quickgelu": {"quick_gelu": True},
    "words-custom": {"custom_text": True, "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True}},
    "words-elsewhere": {"text_cfg": {**TEXT, "hf_tokenizer_name": "nobody/no-model"}},
    "words-foreign": {"text_cfg": {"hf_model_name": "nobody/no-model", "hf_tokenizer_name": "nobody/no-model"}},
}
TOWERS = ["words", "words-quickgelu", "words-custom"]
TEXTS = [
    "a photo of a cat.",
    "A PHOTO of a dog!",
    "a sentence of many more words than twelve tokens can ever hold, cut",
]
NAMES, TEMPLATES = ["cat", "golden retriever", "sea snake"], ["a photo of a {}.", "art of the {}.", "{}"]


@pytest.fixture(scope="module", autouse=True)
def configs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Small models beside open_clip's own, called `attar-words…`."""
    folder = tmp_path_factory.mktemp("configs")
    for name, changes in CONFIGS.items():
        config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT, **changes}
        (folder / f"attar-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@functools.cache
def whole_model(name: str) -> Any:
    """open_clip's own model. Norms are random, so that none is idle."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = open_clip.create_model(f"attar-{name}").eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def weights_of(name: str, folder: Path) -> Path:
    """A file with the state dict of the whole model."""
    torch.save(whole_model(name).state_dict(), folder / f"{name}.pt")
    return folder / f"{name}.pt"


def assert_close(given: Tensor, wanted: Tensor) -> None:
    assert wanted.std() > 0.01  # nothing is compared with nothing
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_embeddings_are_open_clips_own(name: str, tmp_path: Path) -> None:
    """Another activation, mask, pooling or context length would not give them."""
    tower = load_text_tower(f"open_clip:attar-{name}", weights=weights_of(name, tmp_path))
    tokens = open_clip.get_tokenizer(f"attar-{name}")(TEXTS)
    assert torch.equal(tower.tokenise(TEXTS), tokens)
    assert_close(tower.encode(TEXTS), whole_model(name).encode_text(tokens))
    assert tower.encode(TEXTS).shape == (3, tower.embed_dim) == (3, 32)
    assert tokens.shape == (3, tower.context_length) == (3, 12)


@torch.no_grad()
@pytest.mark.parametrize("name", ["words", "words-custom"])
def test_the_zero_shot_classifier_is_open_clips(name: str, tmp_path: Path) -> None:
    """A mean of raw embeddings, or one over shares, would give another."""
    model, reference, file = whole_model(name), f"open_clip:attar-{name}", weights_of(name, tmp_path)
    tower = load_text_tower(reference, weights=file)
    wanted = open_clip.build_zero_shot_classifier(model, tower.tokenise, NAMES, TEMPLATES)
    classifier = text_classifier(tower.encode, NAMES, TEMPLATES)
    assert_close(classifier, wanted.T)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = load_backbone(reference, weights=file)
    features = model.encode_image((images - backbone.mean) / backbone.std, normalize=True)
    torch.testing.assert_close(
        zero_shot_logits(backbone.embed(images), classifier), 100 * features @ wanted, rtol=0, atol=1e-3
    )


def test_the_image_tower_is_explained_and_the_learned_scale_kept(tmp_path: Path) -> None:
    model = whole_model("words")
    tower = load_text_tower("open_clip:attar-words", weights=weights_of("words", tmp_path))
    others = {key for key in model.state_dict() if key.startswith("visual.")} | {"logit_scale"}
    assert {key for key, _ in tower.source.explained} == others
    in_images = sum(parameter.numel() for parameter in model.visual.parameters())
    both = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in tower.parameters()) == both - in_images - 1  # the scale
    assert tower.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    torch.save(model.state_dict() | {"logit_scale": torch.tensor(9.0)}, tmp_path / "hot.pt")
    assert load_text_tower("open_clip:attar-words", weights=tmp_path / "hot.pt").logit_scale == 100  # e^9 is 8103
    siglip = {"logit_scale": torch.tensor(4.75), "logit_bias": torch.tensor(-12.9)}  # SigLIP's training has no cap
    torch.save(model.state_dict() | siglip, tmp_path / "siglip.pt")
    scale = load_text_tower("open_clip:attar-words", weights=tmp_path / "siglip.pt").logit_scale
    assert scale == pytest.approx(math.exp(4.75))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("words", "training checkpoint"),
        ("words-custom", "training checkpoint"),
        ("words-custom", "text tower alone"),
        ("words-quickgelu", "OpenAI"),
    ],
)
def test_forms_of_files_that_are_one_tower(name: str, form: str, tmp_path: Path) -> None:
    state, file, reference = whole_model(name).state_dict(), tmp_path / "other.pt", f"open_clip:attar-{name}"
    wanted = load_text_tower(reference, weights=weights_of(name, tmp_path))
    if form == "training checkpoint":
        torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    elif form == "text tower alone":
        torch.save(wanted.model.state_dict(), file)
    else:
        torch.save(state | {"context_length": torch.tensor(12)}, file)
    tower = load_text_tower(reference, weights=file)
    assert torch.equal(tower.encode(TEXTS), wanted.encode(TEXTS))
    assert tower.logit_scale == (None if form == "text tower alone" else wanted.logit_scale)


@pytest.mark.parametrize("harm", ["renamed", "misshaped", "stray"])
@pytest.mark.parametrize(
    ("name", "key"),
    [("words", "ln_final.weight"), ("words", "text_projection"), ("words-custom", "text.positional_embedding")],
)
def test_one_key_that_does_not_fit_is_named(name: str, key: str, harm: str, tmp_path: Path) -> None:
    state = dict(whole_model(name).state_dict())
    value = state.pop(key)
    stray = "text.extra.weight" if name == "words-custom" else "text_head.weight"
    harmed = {"renamed": {f"{key}_renamed": value}, "misshaped": {key: value[1:]}, "stray": {key: value, stray: value}}
    torch.save(state | harmed[harm], tmp_path / "harmed.pt")
    with pytest.raises(WeightsError, match="do not fit the model") as caught:
        load_text_tower(f"open_clip:attar-{name}", weights=tmp_path / "harmed.pt")
    assert (stray if harm == "stray" else key) in str(caught.value)


def test_openais_own_files_are_refused_by_a_tower_with_gelu(tmp_path: Path) -> None:
    state = whole_model("words").state_dict()
    torch.save(state | {"context_length": torch.tensor(12)}, tmp_path / "openai.pt")
    with pytest.raises(ModelReferenceError, match="Try open_clip:attar-words-quickgelu"):
        load_text_tower("open_clip:attar-words", weights=tmp_path / "openai.pt")


def test_random_weights_are_a_function_of_the_seed() -> None:
    first, same, other = (load_text_tower("open_clip:attar-words", weights="random", seed=s) for s in (1, 1, 2))
    assert torch.equal(first.encode(TEXTS), same.encode(TEXTS))
    assert not torch.equal(first.encode(TEXTS), other.encode(TEXTS))
    assert (first.source.weights, first.logit_scale) == ("random", None)


def test_encoding_leaves_the_mode_and_no_graph_and_forward_trains() -> None:
    tower = load_text_tower("open_clip:attar-words", weights="random").train()
    assert not tower.encode(TEXTS).requires_grad
    assert tower.training
    assert tower.model.training
    tower(tower.tokenise(TEXTS)).sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    assert math.isfinite(sum(parameter.grad.norm().item() for parameter in tower.parameters()))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "'vit_tiny_patch16_224' has no text tower that attar reads. Give open_clip:NAME, a directory",
        ),
        ("ViT-B-32", "Did you mean 'open_clip:ViT-B-32?pretrained=TAG'?"),
        ("open_clip:attar-word", "Did you mean 'attar-words'"),
        ("open_clip:attar-words-foreign", "the text tower of 'open_clip:attar-words-foreign' cannot be built"),
    ],
)
def test_references_without_a_text_tower(reference: str, message: str) -> None:
    with pytest.raises(ModelReferenceError, match=re.escape(message)):
        load_text_tower(reference, weights="random")


def test_a_tokeniser_that_did_not_arrive_is_named() -> None:
    with pytest.raises(ModelReferenceError, match="the tokeniser of open_clip:attar-words-elsewhere cannot be made"):
        load_text_tower("open_clip:attar-words-elsewhere", weights="random")
