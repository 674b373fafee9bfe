"""Parameter groups: which tensors decay by the recipe of DIME-FM (oracle 6.5 of its spec)."""

import torch
from torch import nn

from attar.config import OptimConfig
from attar.models import load_backbone
from attar.train import build_state, embeddings_spared
from small_models import Words


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


def test_muon_does_not_take_a_table_of_words_for_a_matrix():
    student = load_backbone("vit_tiny_patch16_224?depth=1&embed_dim=48&num_heads=2", weights="random", img_size=32)
    learner = nn.ModuleDict({"student": student, "text": Words(8)})
    state = build_state(learner, student, OptimConfig(algorithm="muon"), groups=embeddings_spared)
    for parameter in learner.parameters():
        parameter.grad = torch.randn(parameter.shape)
    state.optimizer.step()
    assert "exp_avg" in state.optimizer.state[learner["text"].token_embedding.weight]
    assert "momentum_buffer" in state.optimizer.state[learner["text"].layers[0].weight]
