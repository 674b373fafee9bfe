"""Models and batches that take a blink, for tests of methods."""

import torch
from torch import nn

from attar.config import OptimConfig
from attar.data.sentence_stream import Sentences
from attar.models import LinearClassifier, Provenance, TextTower, load_backbone
from attar.train import build_state
from attar.types import Batch

TINY = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=2&num_heads=2"
WIDE = TINY.replace("embed_dim=32", "embed_dim=48")


def backbone(reference=TINY, *, img_size=32, seed=0):
    """A backbone with random weights."""
    return load_backbone(reference, weights="random", img_size=img_size, seed=seed)


def batch_of(count, *, start=0, total=None, num_classes=3, img_size=32):
    """Labelled noise at positions `start` to `start + count - 1` of a global batch of `total` views."""
    total = total or count
    generator = torch.Generator().manual_seed(1)
    views = torch.rand(total, 3, img_size, img_size, generator=generator)[start : start + count]
    positions = torch.arange(start, start + count)
    no_ids = torch.zeros_like(positions)
    return Batch(views, positions, no_ids, positions, 0, total, labels=positions % num_classes)


def classifier(num_classes=3, features=48, *, embed_dim=48, bias=None):
    """A frozen linear classifier: random, or without weights and with a given bias, which are then its logits."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(num_classes, features, generator=generator)
    if bias is not None:
        weight, bias = torch.zeros(len(bias), features), torch.tensor(bias)
    return LinearClassifier(weight, bias, embed_dim=embed_dim).requires_grad_(False)


def always(head, logits):
    """Make a student's head answer every image with these logits."""
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor(logits))


class Words(nn.Module):
    """A text encoder: the mean of its words, through two layers. (m, L) to (m, width)."""

    def __init__(self, width, *, vocabulary=50, inner=16):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, inner)
        self.layers = nn.Sequential(nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, tokens):
        return self.layers(self.token_embedding(tokens).mean(1))


def text_tower(width=24, *, seed=0):
    """A text tower with random weights that reads letters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Words(width)

    def tokenise(texts):
        return torch.tensor([[ord(letter) % 50 for letter in f"{text:6.6}"] for text in texts])

    return TextTower(
        model,
        tokenise,
        embed_dim=width,
        context_length=6,
        logit_scale=None,
        source=Provenance("words"),
        config={"text_cfg": {}},
    ).eval()


def sentences(count=40, width=24, *, tokens=True, seed=0, dtype=torch.float32):
    """What is stored of sentences: random features, and token numbers that a `text_tower` reads."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=dtype)
    return Sentences(features, torch.randint(50, (count, 6), generator=generator) if tokens else None)


def one_pass(model, *, img_size=None):
    """(gradients, bytes kept for the backward pass) of a backbone's forward pass on noise, in training mode."""
    size, kept = img_size or model.img_size, {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.train().zero_grad(set_to_none=True)
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = model(images)
        loss = tokens.cls.square().sum() + tokens.patch.square().sum()
    size_kept = sum(kept.values())
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], size_kept


def given_to_adamw(model):
    """Whether Muon leaves it to AdamW, by name of each parameter of a backbone that has a gradient."""
    state = build_state(model, model, OptimConfig(algorithm="muon", ema_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return {name: "exp_avg" in state.optimizer.state[parameter] for name, parameter in model.named_parameters()}
