"""Low-rank additions: nothing at first, something after a step, merged into the weights with equal outputs."""

import pytest
import torch

from attar.errors import ModelReferenceError
from attar.models.lora import add_low_rank, merge_low_rank
from small_models import backbone


def test_additions_learn_alone_and_merge_with_equal_outputs():
    model, images = backbone(), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    keys, before = set(model.state_dict()), model.tokens(images).cls
    layers = add_low_rank(model.model, rank=4, alpha=8.0)
    assert len(layers) == 8  # qkv, proj, fc1 and fc2 of two blocks
    assert torch.equal(model.tokens(images).cls, before)
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learns) == 16
    model(images).cls.square().sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in learns)
    with torch.no_grad():
        for parameter in learns:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    added = model.tokens(images).cls
    assert not torch.allclose(added, before, atol=1e-2)
    merge_low_rank(model.model)
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model.tokens(images).cls, added)


def test_a_conv_net_has_nowhere_to_add_to():
    with pytest.raises(ModelReferenceError, match="no linear layers named"):
        add_low_rank(backbone("resnet18", img_size=32).model, rank=4, alpha=8.0)
