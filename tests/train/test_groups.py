"""Parameter groups: which tensors decay by the recipe of DIME-FM (oracle 6.5 of its spec)."""

from typing import Any

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from attar.config import OptimConfig
from attar.models import load_backbone
from attar.train import build_state, embeddings_spared
from attar.train.groups import Groups, tables_apart
from small_models import Words


def in_halves(learner: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The first half of the parameters learns more slowly, and does not decay."""
    parameters = list(learner.parameters())
    middle = len(parameters) // 2
    return [
        {"params": parameters[:middle], "weight_decay": 0.0, "lr_scale": 0.5},
        {"params": parameters[middle:], "weight_decay": weight_decay},
    ]


def test_embeddings_do_not_decay_and_no_parameter_is_lost() -> None:
    learner = nn.ModuleDict(
        {"student": load_backbone("vit_tiny_patch16_224?depth=1", weights="random"), "text": Words(8)}
    )
    swin = load_backbone("swin_tiny_patch4_window7_224?depths=[1,1,1,1]", weights="random")
    for module in (learner, swin):
        groups = embeddings_spared(module, 0.05)
        decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(decays) == len(list(module.parameters()))
        for name, parameter in module.named_parameters():
            is_spared = any(word in name for word in ("pos_embed", "cls_token", "token_embedding", "relative_position"))
            assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 and not is_spared else 0.0), name
    names = [name for name, _ in swin.named_parameters()]
    assert any("relative_position_bias_table" in name for name in names)
    assert torch.is_tensor(learner["text"].token_embedding.weight)


@pytest.mark.parametrize("groups", [embeddings_spared, param_groups_weight_decay, in_halves])
def test_muon_does_not_take_a_table_of_words_for_a_matrix(groups: Groups) -> None:
    student = load_backbone("vit_tiny_patch16_224?depth=1&embed_dim=48&num_heads=2", weights="random", img_size=32)
    learner = nn.ModuleDict({"student": student, "text": Words(8)})
    state = build_state(learner, student, OptimConfig(algorithm="muon"), groups=groups)
    learned = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, learned)) == sorted(map(id, learner.parameters()))
    for parameter in learner.parameters():
        parameter.grad = torch.randn(parameter.shape)
    state.optimizer.step()
    assert "exp_avg" in state.optimizer.state[learner["text"].token_embedding.weight]
    assert "momentum_buffer" in state.optimizer.state[learner["text"].layers[0].weight]


def test_tables_learn_as_the_group_does_that_they_come_from() -> None:
    # catches a table whose rate or decay is lost on the way to AdamW
    words = Words(8)
    found = tables_apart([{"params": list(words.parameters()), "weight_decay": 0.1, "lr_scale": 0.5}], words)
    tables = next(group for group in found if group["params"][0] is words.token_embedding.weight)
    assert len(tables.pop("params")) == 1
    assert tables == {"weight_decay": 0.1, "lr_scale": 0.5, "use_fallback": True}
