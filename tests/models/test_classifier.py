"""A classifier from a file gives the logits of whoever trained it, or is refused."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from attar.errors import WeightsError
from attar.models import load_backbone, load_classifier
from small_models import TINY, backbone

DIM, K = 32, 5
DINOV2 = "vit_small_patch14_reg4_dinov2?embed_dim=32&depth=1&num_heads=2"


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def saved(tmp_path, state):
    torch.save(state, tmp_path / "classifier.pth")
    return tmp_path / "classifier.pth"


def load(tmp_path, state):
    return load_classifier(saved(tmp_path, state), backbone())


@pytest.fixture
def tokens():
    return backbone().tokens(torch.rand(3, 3, 32, 32))


@pytest.mark.parametrize("name", ["", "fc.", "head.", "head.fc.", "classifier.", "linear_head.", "module.fc."])
def test_a_classifier_on_the_class_token_under_any_usual_name(name, tmp_path, tokens):
    weight, bias = random(K, DIM), random(K)
    found = load(tmp_path, {f"{name}weight": weight, f"{name}bias": bias})
    torch.testing.assert_close(found.logits(tokens), tokens.cls @ weight.T + bias)
    assert found.out_features == K


def test_a_double_width_reads_class_token_first_then_the_mean_patch_without_registers(tmp_path):
    # facebookresearch/dinov2, hub/classifiers.py: cat([x_norm_clstoken, x_norm_patchtokens.mean(dim=1)], dim=1)
    teacher = backbone(DINOV2, img_size=28)
    tokens = teacher.tokens(torch.rand(3, 3, 28, 28))
    assert tokens.prefix.shape[1] == 4
    one, other = random(K, DIM), random(K, DIM).flip(0)
    path = saved(tmp_path, {"weight": torch.cat([one, other], dim=1), "bias": torch.zeros(K)})
    expected = tokens.cls @ one.T + tokens.patch.mean(1) @ other.T
    torch.testing.assert_close(load_classifier(path, teacher).logits(tokens), expected)


@pytest.mark.parametrize("name", [TINY, "test_resnet", "test_convnext", "test_efficientnet", "test_vit2"])
def test_beside_a_whole_timm_checkpoint_it_gives_timms_own_logits(name, tmp_path):
    # fc, head, head.fc behind a norm, classifier; a class token, or the model's own pooling
    plain, _, arguments = name.partition("?")
    numbers = {key: int(value) for key, value in (word.split("=") for word in arguments.split("&") if word)}
    model = timm.create_model(plain, num_classes=K, **numbers, **({"img_size": 64} if numbers else {})).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
    path = saved(tmp_path, model.state_dict())
    teacher = load_backbone(name, weights=path, img_size=64)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model((images - teacher.mean) / teacher.std)
    found = load_classifier(path, teacher).logits(teacher.tokens(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std() > 1e-2


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_whole_checkpoint_that_classifies_by_other_features_is_refused(name, tmp_path):
    # the one averages patches, the other has two classifiers; both are as wide as the class token
    small = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    path = saved(tmp_path, timm.create_model(name, num_classes=K, img_size=64, **small).state_dict())
    reference = f"{name}?{'&'.join(f'{key}={value}' for key, value in small.items())}"
    teacher = backbone(reference, img_size=64)
    with pytest.raises(WeightsError, match="other features than its class token"):
        load_classifier(path, teacher)
    alone = saved(tmp_path, {"weight": random(K, DIM), "bias": random(K)})  # trained on the class token by its user
    assert load_classifier(alone, teacher).out_features == K


def test_it_is_frozen_and_in_float32(tmp_path, tokens):
    weight = random(K, DIM).half()
    found = load(tmp_path, {"weight": weight})
    assert found.bias is None
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    torch.testing.assert_close(found.logits(tokens), F.linear(tokens.cls, weight.float()))


def test_it_comes_from_safetensors_and_out_of_a_wrapper_too(tmp_path, tokens):
    state = {"weight": random(K, DIM), "bias": random(K)}
    save_file(state, tmp_path / "classifier.safetensors")
    one = load_classifier(tmp_path / "classifier.safetensors", backbone())
    other = load(tmp_path, {"state_dict": state})
    assert torch.equal(one.logits(tokens), other.logits(tokens))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"weight": random(K, 48)}, "reads 48 features, the teacher vit_tiny.* has 32"),
        ({"weight": random(K, 5 * DIM)}, "reads 160 features.*class token and mean patch side by side"),  # 4 layers
        ({"a.weight": random(K, DIM), "b": random(3)}, r"no linear classifiers among its 2 keys \(a.weight, b\)"),
        ({"weight": random(K, DIM, 1, 1)}, "no linear classifiers"),
        ({"fc.weight": random(K, DIM), "head.weight": random(K, DIM)}, "2 linear classifiers"),
        ({"fc.weight": random(K, DIM), "fc.bias": random(4)}, r"fc.bias is \(4,\), fc.weight \(5, 32\)"),
        ({"weight": random(1, DIM)}, r"\(1, 32\).*two classes at least"),
        ({"weight": torch.ones(K, DIM, dtype=torch.int8)}, "torch.int8.*floats"),
    ],
)
def test_what_is_no_classifier_of_this_teacher_is_refused(state, says, tmp_path):
    with pytest.raises(WeightsError, match=says) as caught:
        load(tmp_path, state)
    assert "classifier.pth" in str(caught.value)
