"""The adapter on every family: what timm computes, in attar's shapes, with the model's own normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import pytest
import timm
import torch
from torch import Tensor, nn

from attar.errors import ModelReferenceError, ShapeError
from attar.models import Backbone, Preprocess, Provenance, cache_sized, load_backbone
from attar.types import Tokens

SLIM = "depth=2&embed_dim=96&num_heads=3"


@dataclass(frozen=True)
class Family:
    reference: str
    size: int
    embed_dim: int
    grid: int
    patch_size: int
    num_prefix: int = 0
    can_mask: bool = True


SEQUENCES = {
    "vit": Family(f"vit_base_patch16_224?{SLIM}", 64, 96, 4, 16),
    "dynamic": Family(f"vit_base_patch16_224?{SLIM}&dynamic_img_size=true", 64, 96, 4, 16),
    "average": Family(f"vit_base_patch16_gap_224?{SLIM}", 64, 96, 4, 16),
    "registers": Family(f"vit_base_patch14_reg4_dinov2?{SLIM}", 70, 96, 5, 14, num_prefix=4),
    "registers and average": Family(f"vit_medium_patch16_reg4_gap_256?{SLIM}", 64, 96, 4, 16, num_prefix=4),
    "distilled": Family(f"deit_base_distilled_patch16_224?{SLIM}", 64, 96, 4, 16, num_prefix=1),
    "beit": Family(f"beit_base_patch16_224?{SLIM}", 64, 96, 4, 16),
    "eva": Family("eva02_tiny_patch14_224?depth=2", 70, 192, 5, 14),
    "dinov3": Family("vit_small_patch16_dinov3?depth=2", 64, 384, 4, 16, num_prefix=4),
    "siglip": Family(f"vit_base_patch16_siglip_224?{SLIM}", 64, 96, 4, 16),
    "relative": Family("vit_relpos_small_patch16_224?depth=2", 64, 384, 4, 16),
    "cut border": Family(f"vit_base_patch16_224?{SLIM}", 72, 96, 4, 16),
    "hybrid": Family("vit_tiny_r_s16_p8_224?depth=2", 64, 192, 2, 32, can_mask=False),
    "xcit": Family("xcit_nano_12_p16_224?depth=2", 64, 128, 4, 16, can_mask=False),
}
SWIN = "swin_tiny_patch4_window7_224?depths=(1,1,1,1)&embed_dim=24&num_heads=(1,2,3,6)"
MAPS = {
    "resnet": Family("resnet10t", 64, 512, 2, 32, can_mask=False),
    "odd size": Family("resnet10t", 70, 512, 3, 32, can_mask=False),
    "convnext": Family("convnext_atto", 64, 320, 2, 32, can_mask=False),
    "fastvit": Family("fastvit_t8?layers=(1,1,1,1)", 64, 768, 2, 32, can_mask=False),
    "mobilevit": Family("mobilevitv2_050", 64, 256, 2, 32, can_mask=False),
    "swin": Family(SWIN, 112, 192, 4, 32, can_mask=False),
    "mobilenet": Family("mobilenetv3_small_050", 64, 288, 2, 32, can_mask=False),
    "mambaout": Family("mambaout_femto?depths=(1,1,1,1)", 64, 288, 2, 32, can_mask=False),
    "inception": Family("inception_next_atto", 64, 320, 2, 32, can_mask=False),
}
FAMILIES = SEQUENCES | MAPS
CLASS_TOKEN = ["vit", "dynamic", "registers", "distilled", "beit", "eva", "dinov3", "cut border", "hybrid", "xcit"]


@lru_cache
def backbone_of(name: str) -> Backbone:
    """Shared between tests, which leave it as they found it. Norms and tokens are random, so that none is idle."""
    family = FAMILIES[name]
    backbone = load_backbone(family.reference, weights="random", img_size=family.size)
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.model.parameters():
        if parameter.ndim == 1 or parameter.shape[0] == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return backbone


def images(size: int, *, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def timm_features(backbone: Backbone, pixels: Tensor) -> Tensor:
    """timm's own features, with the statistics that timm publishes for the model."""
    config = timm.get_pretrained_cfg(backbone.source.name.partition("?")[0])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        return backbone.model.forward_features((pixels - mean) / std)


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes(name):
    family, backbone = FAMILIES[name], backbone_of(name)
    tokens = backbone.tokens(images(family.size))
    count = family.grid**2
    assert tokens.cls.shape == (2, family.embed_dim)
    assert tokens.patch.shape == (2, count, family.embed_dim)
    assert tokens.prefix.shape == (2, family.num_prefix, family.embed_dim)
    assert tokens.grid == backbone.grid == (family.grid, family.grid)
    assert (backbone.embed_dim, backbone.patch_size) == (family.embed_dim, family.patch_size)
    assert (backbone.img_size, backbone.can_mask) == (family.size, family.can_mask)
    assert not backbone.training


@pytest.mark.parametrize("name", CLASS_TOKEN)
def test_class_token_is_the_first_of_timms_sequence(name):
    family, backbone = FAMILIES[name], backbone_of(name)
    pixels = images(family.size)
    tokens, features = backbone.tokens(pixels), timm_features(backbone, pixels)
    if name in ("beit", "eva"):  # timm keeps their final norm behind an average pooling
        features = backbone.model.fc_norm(features)
    start = 1 + family.num_prefix
    assert equal(tokens.cls, features[:, 0])
    assert equal(tokens.prefix, features[:, 1:start])
    assert equal(tokens.patch, features[:, start:])


@pytest.mark.parametrize("name", ["average", "registers and average", "siglip", "relative"])
def test_without_a_class_token_the_model_pools_for_itself(name):
    family, backbone = FAMILIES[name], backbone_of(name)
    pixels = images(family.size)
    tokens, features = backbone.tokens(pixels), timm_features(backbone, pixels)
    final = backbone.model.fc_norm(features)
    assert equal(tokens.cls, backbone.model.forward_head(features, pre_logits=True))
    assert equal(tokens.prefix, final[:, : family.num_prefix])
    assert equal(tokens.patch, final[:, family.num_prefix :])
    if name != "average":  # its norm comes before the mean; elsewhere it comes after, and SigLIP has attention there
        assert not equal(tokens.cls, tokens.patch.mean(1))


@pytest.mark.parametrize("name", MAPS)
def test_maps_are_pooled_by_the_model_and_read_row_by_row(name):
    family, backbone = FAMILIES[name], backbone_of(name)
    pixels = images(family.size)
    tokens, features = backbone.tokens(pixels), timm_features(backbone, pixels)
    pooled = backbone.model.forward_head(features, pre_logits=True)
    if name in ("swin", "mambaout"):
        features = features.permute(0, 3, 1, 2)  # both compute channels-last
    if name == "convnext":
        features = backbone.model.head.norm(features)
    if name == "mambaout":
        features = backbone.model.head.norm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert equal(tokens.patch.mT.unflatten(2, tokens.grid), features)
    if pooled.shape[1] == family.embed_dim:
        assert equal(tokens.cls, pooled)
    else:  # a hidden layer of another width stands in the head
        assert name in ("mobilenet", "mambaout", "inception")
        assert equal(tokens.cls, features.mean((2, 3)))


@pytest.mark.parametrize("name", ["resnet", "convnext", "mobilenet", "vit", "swin"])
def test_convolutions_see_channels_last_and_weights_keep_their_layout(name):
    """The quick layout is one of activations: a checkpoint, an export and an optimizer know nothing of it."""
    family = FAMILIES[name]
    backbone = load_backbone(family.reference, weights="random", img_size=family.size)
    first, *inner = [part for part in backbone.model.modules() if isinstance(part, nn.Conv2d)]
    seen: list[Tensor] = []
    for convolution in (first, *inner):
        convolution.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    backbone.train()(images(family.size)).cls.sum().backward()
    is_last = [part.is_contiguous(memory_format=torch.channels_last) for part in seen]
    assert len(seen) == 1 + len(inner)
    assert is_last == [bool(inner)] * len(seen)
    assert bool(inner) == (name not in ("vit", "swin"))
    assert all(p.is_contiguous() for p in backbone.parameters())
    assert all(p.grad.is_contiguous() for p in backbone.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "size"), [("vit", 64), ("eva", 70), ("dynamic", 272), ("dynamic", 288)])
def test_attention_is_fused_but_where_bf16_on_a_cpu_meets_few_tokens(name, size):
    """timm's fused kernel is the slow one there; on 324 tokens a table of all pairs would cost memory instead."""
    backbone = load_backbone(FAMILIES[name].reference, weights="random", img_size=size)
    attentions = [part for part in backbone.model.modules() if hasattr(part, "fused_attn")]
    seen: list[bool] = []
    attentions[0].register_forward_hook(lambda module, _inputs, _output: seen.append(module.fused_attn))
    exact = backbone.tokens(images(size))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = backbone.tokens(images(size))
    assert seen == [True, size == 288]
    torch.testing.assert_close(rounded.patch, exact.patch, atol=0.1, rtol=0.05)
    assert all(part.fused_attn for part in attentions)  # nothing is left behind for a copy or an export


@pytest.mark.parametrize("reference", ["pvt_v2_b0", "caformer_s18"])
def test_a_pyramid_whose_first_stages_have_many_tokens_stays_fused(reference):
    backbone = load_backbone(reference, weights="random", img_size=64)
    attentions = [part for part in backbone.model.modules() if getattr(part, "fused_attn", False)]
    seen: list[bool] = []
    for attention in attentions:
        attention.register_forward_hook(lambda module, _inputs, _output: seen.append(module.fused_attn))
    with torch.autocast("cpu", torch.bfloat16):
        backbone.tokens(images(64))
    assert seen == [True] * len(attentions)
    assert attentions


def test_recomputed_blocks_attend_the_same_way_each_time():
    backbone = load_backbone(FAMILIES["vit"].reference, weights="random", img_size=64)
    backbone.recompute_blocks()
    with torch.autocast("cpu", torch.bfloat16):
        loss = backbone.train()(images(64)).cls.float().square().mean()
    loss.backward()  # outside, where it would be another one
    assert all(p.grad is not None for p in backbone.model.blocks.parameters())  # type: ignore[union-attr, operator]


class Flattening(nn.Module):
    """A convolution, then a view that only channels first allow."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.convolutions(pixels)
        return found.view(len(found), -1).view(found.shape)


def test_ones_own_module_gets_the_layout_that_it_was_written_for():
    backbone = Backbone(Flattening(), img_size=32, preprocess=Preprocess(), source=Provenance("mine"))
    assert backbone.tokens(images(32)).grid == (4, 4)


@pytest.mark.parametrize("reference", [f"vit_base_patch16_224?{SLIM}&dynamic_img_size=true", "resnet10t"])
def test_other_image_shapes_keep_rows_and_columns_apart(reference):
    backbone = load_backbone(reference, weights="random", img_size=64)
    pixels = images(128)[:, :, :64]
    tokens = backbone.tokens(pixels)
    assert tokens.grid == (64 // backbone.patch_size, 128 // backbone.patch_size)
    assert tokens.patch.shape[1] == tokens.grid[0] * tokens.grid[1]


@pytest.mark.parametrize("name", ["vit", "distilled", "eva", "mobilevit"])
def test_each_model_normalises_for_itself(name):
    """An image of the model's own mean colour is black to the network; so the statistics are the right ones."""
    family, backbone = FAMILIES[name], backbone_of(name)
    mean = {"vit": (0.5,) * 3, "distilled": (0.485, 0.456, 0.406), "mobilevit": (0.0,) * 3}.get(
        name, (0.48145466, 0.4578275, 0.40821073)
    )
    assert backbone.preprocess.mean == mean
    flat = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, family.size, family.size)
    with torch.no_grad():
        black = backbone.model.forward_features(torch.zeros(1, 3, family.size, family.size))
    features = backbone.tokens(flat).patch
    black = black[:, 1 + family.num_prefix :] if black.ndim == 3 else black.flatten(2).mT
    assert equal(features, backbone.model.fc_norm(black) if name == "eva" else black)


def test_statistics_of_one_architecture_follow_its_weights():
    """Two sets of weights of one architecture may want different statistics; timm's tag tells."""
    halves = load_backbone(f"vit_base_patch16_224.augreg_in21k?{SLIM}", weights="random", img_size=64)
    imagenet = load_backbone(f"vit_base_patch16_224.dino?{SLIM}", weights="random", img_size=64)
    assert (halves.preprocess.mean, imagenet.preprocess.mean) == ((0.5, 0.5, 0.5), (0.485, 0.456, 0.406))
    assert torch.equal(halves.model.patch_embed.proj.weight, imagenet.model.patch_embed.proj.weight)
    pixels = 0.6 * images(64) + 0.2  # undone, they stay images
    assert not equal(halves.tokens(pixels).cls, imagenet.tokens(pixels).cls)
    undone = (pixels - imagenet.mean) / imagenet.std * halves.std + halves.mean
    assert equal(halves.tokens(undone).cls, imagenet.tokens(pixels).cls)


def test_uint8_images_are_divided_by_255():
    backbone = backbone_of("vit")
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.tokens(pixels).cls, backbone.tokens(pixels.float() / 255).cls)


def test_other_whole_numbers_are_refused_and_doubles_are_cast():
    """int64 pixels have no known range: taking 0 to 255 for 0 to 1 would be silent nonsense."""
    backbone, pixels = backbone_of("vit"), images(64)
    with pytest.raises(ShapeError, match=r"images are torch.int64; a backbone takes floats in \[0, 1\], or uint8"):
        backbone.tokens((pixels * 255).long())
    assert equal(backbone.tokens(pixels.double()).cls, backbone.tokens(pixels).cls)


@pytest.mark.parametrize("change", [lambda p: (p - 0.45) / 0.225, lambda p: p * 255, lambda p: p * float("nan")])
@pytest.mark.parametrize("face", ["tokens", "embed", "intermediates"])
def test_images_of_another_range_are_refused_where_they_are_used_and_not_in_training(face, change):
    backbone, pixels = backbone_of("vit"), images(64)
    ask = partial(backbone.intermediates, layers=[-1]) if face == "intermediates" else getattr(backbone, face)
    with pytest.raises(ShapeError, match=r"images range from \S+ to \S+; .* your own normalisation .* by 255"):
        ask(change(pixels))
    ask(pixels * 1.6 - 0.3)  # as bicubic resizing and noise may leave them
    backbone(change(pixels))  # random erasing fills with noise


def test_a_backbone_is_shown_in_one_line():
    backbone = backbone_of("vit")
    shown = f"Backbone({backbone.source.name!r}, weights='random', "
    assert repr(backbone).startswith(shown)
    assert repr(backbone).endswith("64 px, 4x4 tokens of 96)")


def test_in_double_precision_nothing_is_rounded_to_single():
    """One rank against several is compared to 1e-9 in float64."""
    backbone = load_backbone(f"vit_base_patch16_224?{SLIM}", weights="random", img_size=64).double()
    pixels = images(64).double()
    tokens = backbone(pixels)
    assert tokens.cls.dtype == torch.float64
    assert not torch.equal(tokens.cls, tokens.cls.float().double())
    assert backbone.tokens(pixels).cls.dtype == torch.float32


def test_modes_of_every_submodule_are_restored():
    """tokens() runs in eval mode and gives each submodule its own mode back, however mixed."""
    backbone = load_backbone("resnet10t?drop_rate=0.5", weights="random", img_size=64).train()
    backbone.model.layer1.eval()
    modes = {name: module.training for name, module in backbone.named_modules()}
    buffers = {name: value.clone() for name, value in backbone.model.named_buffers()}
    inside: list[bool] = []
    backbone.model.layer4.register_forward_hook(lambda module, *_: inside.append(module.training))
    first = backbone.tokens(images(64))
    backbone.intermediates(images(64), layers=[-1])
    with pytest.raises(ShapeError):
        backbone.tokens(torch.rand(1, 4, 64, 64))
    assert inside == [False, False]
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert all(torch.equal(value, buffers[name]) for name, value in backbone.model.named_buffers())
    assert torch.equal(first.cls, backbone.eval().tokens(images(64)).cls)


def test_building_a_backbone_leaves_statistics_and_mode_alone():
    model = timm.create_model("resnet10t", num_classes=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Backbone(model, img_size=64, preprocess=Preprocess(), source=Provenance("own"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_forward_carries_gradient_and_tokens_does_not(name):
    family = FAMILIES[name]
    backbone = load_backbone(family.reference, weights="random", img_size=family.size).train()
    tokens = backbone(images(family.size))
    (tokens.cls.square().sum() + tokens.patch.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in backbone.model.parameters())
    frozen = backbone.tokens(images(family.size))
    assert not any(value.requires_grad for value in (frozen.cls, frozen.patch, frozen.prefix))
    assert not any(item.patch.requires_grad for item in backbone.intermediates(images(family.size), layers=[-1]))
    assert not backbone.embed(images(family.size)).requires_grad


def test_forward_intermediates_is_intermediates_with_gradient():
    backbone = backbone_of("vit").eval()
    pixels = images(64)
    learned = backbone.forward_intermediates(pixels, layers=[0, -1])
    frozen = backbone.intermediates(pixels, layers=[0, -1])
    assert all(equal(one.patch, other.patch) for one, other in zip(learned, frozen, strict=True))
    weight = backbone.model.blocks[0].mlp.fc1.weight
    assert torch.autograd.grad(learned[0].patch.square().sum(), weight)[0].abs().max() > 0
    assert backbone.depth == len(backbone.model.blocks)


def test_forward_uses_the_current_mode():
    backbone = load_backbone("resnet10t", weights="random", img_size=64)
    assert torch.equal(backbone(images(64)).cls, backbone.tokens(images(64)).cls)
    assert not equal(backbone.train()(images(64)).cls, backbone.tokens(images(64)).cls)  # statistics of the batch


def test_autocast_tokens_come_out_in_float32():
    backbone = backbone_of("vit")
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone.tokens(images(64))
    assert low.cls.dtype == low.patch.dtype == low.prefix.dtype == torch.float32
    assert torch.allclose(low.cls, backbone.tokens(images(64)).cls, atol=0.1)


def test_embed_is_the_class_token():
    for name in ("vit", "siglip", "resnet"):
        pixels = images(FAMILIES[name].size)
        assert torch.equal(backbone_of(name).embed(pixels), backbone_of(name).tokens(pixels).cls)


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 4, 64, 64), (3, 64, 64), (2, 64, 64, 3)])
def test_images_that_are_no_batch_of_rgb_are_refused(shape):
    with pytest.raises(ShapeError) as caught:
        backbone_of("vit").tokens(torch.rand(shape))
    assert f"images are {shape}; a backbone takes (B, 3, H, W), RGB." in str(caught.value)


@pytest.mark.parametrize("name", ["vit", "registers", "eva", "swin"])
def test_images_of_another_size_are_refused_with_both_sizes(name):
    size, backbone = FAMILIES[name].size, backbone_of(name)
    calls = (backbone, backbone.tokens, lambda pixels: backbone.intermediates(pixels, layers=[-1]))
    for call in calls:
        with pytest.raises(ShapeError) as caught:
            call(images(size + 28))
        assert f"images are {size + 28}x{size + 28} px" in str(caught.value)
        assert f"takes {size}x{size}" in str(caught.value)
        assert "Resize them" in str(caught.value)


def test_running_out_of_memory_is_not_taken_for_a_wrong_size():
    class Greedy(nn.Module):
        def forward_features(self, pixels: Tensor) -> Tensor:
            if pixels.shape[-1] == 32:
                return pixels[:, :, ::16, ::16]
            raise torch.OutOfMemoryError("out of memory")

    backbone = Backbone(Greedy(), img_size=32, preprocess=Preprocess(), source=Provenance("greedy"))
    with pytest.raises(torch.OutOfMemoryError):
        backbone.tokens(images(64))


# ---- intermediate layers


def block_outputs(backbone: Backbone, pixels: Tensor) -> list[Tensor]:
    """What each block says, heard by hooks during timm's own forward."""
    heard: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: heard.append(out)) for block in backbone.model.blocks]
    timm_features(backbone, pixels)
    for hook in hooks:
        hook.remove()
    return heard


@pytest.mark.parametrize("reference", ["deit_base_distilled_patch16_224", "vit_small_patch16_dinov3"])
def test_intermediates_are_the_blocks_asked_for_in_the_order_asked_for(reference):
    backbone = load_backbone(f"{reference}?depth=4&embed_dim=96&num_heads=3", weights="random", img_size=64)
    pixels = images(64)
    blocks = block_outputs(backbone, pixels)
    assert len(blocks) == 4
    start = backbone.model.num_prefix_tokens
    for norm in (True, False):
        final = backbone.model.norm if norm else nn.Identity()
        found = backbone.intermediates(pixels, layers=[2, 0, -1, 2], norm=norm)
        assert len(found) == 4
        for tokens, index in zip(found, [2, 0, 3, 2], strict=True):
            wanted = final(blocks[index])
            assert tokens.grid == (4, 4)
            assert equal(tokens.cls, wanted[:, 0])
            assert equal(tokens.prefix, wanted[:, 1:start])
            assert equal(tokens.patch, wanted[:, start:])


@pytest.mark.parametrize("name", [name for name in SEQUENCES if name != "xcit"])
def test_the_last_layer_with_norm_equals_tokens(name):
    pixels, backbone = images(FAMILIES[name].size), backbone_of(name)
    tokens, (last,) = backbone.tokens(pixels), backbone.intermediates(pixels, layers=[-1], norm=True)
    assert last.grid == tokens.grid
    assert equal(last.cls, tokens.cls)
    assert equal(last.patch, tokens.patch)
    assert equal(last.prefix, tokens.prefix)


@pytest.mark.parametrize("name", ["resnet", "convnext", "swin", "mobilenet"])
def test_stages_of_a_conv_net_come_as_maps_of_growing_stride(name):
    size, backbone = FAMILIES[name].size, backbone_of(name)
    depth = len(backbone.model.feature_info)
    stages = backbone.intermediates(images(size), layers=list(range(depth)), norm=False)
    for stage, info in zip(stages, backbone.model.feature_info, strict=True):
        assert stage.grid == (size // info["reduction"],) * 2 or name == "swin"
        assert stage.patch.shape == (2, stage.grid[0] * stage.grid[1], info["num_chs"])
        assert equal(stage.cls, stage.patch.mean(1))
    assert sorted((stage.grid for stage in stages), reverse=True) == [stage.grid for stage in stages]


@pytest.mark.parametrize("layers", [[2], [-3], [0, 5], []])
def test_a_layer_that_does_not_exist_is_an_error(layers):
    with pytest.raises(ModelReferenceError, match="has layers 0 to 1") as caught:
        backbone_of("vit").intermediates(images(64), layers=layers)
    assert str(layers) in str(caught.value)


def test_a_norm_that_the_model_refuses_names_the_way_out():
    backbone = load_backbone("hiera_tiny_224?stages=(1,1,1,1)", weights="random", img_size=224)
    with pytest.raises(ModelReferenceError, match="Try norm=False"):
        backbone.intermediates(images(224, batch=1), layers=[-1])
    assert backbone.intermediates(images(224, batch=1), layers=[-1], norm=False)[0].grid == (7, 7)


# ---- modules that are no timm model


class Own(nn.Module):
    """Returns what it is told to, with nothing of timm's."""

    def __init__(self, output):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.output = output

    def forward(self, pixels: Tensor) -> object:
        return self.output(pixels * self.scale)


def own(output) -> Backbone:
    return Backbone(Own(output), img_size=32, preprocess=Preprocess(), source=Provenance("own"))


def as_dino(pixels: Tensor, keep: int = 100) -> dict[str, Tensor]:
    patch = pixels[:, :, ::16, ::16].flatten(2).mT[:, :keep]
    return {"x_norm_clstoken": patch[:, 0], "x_norm_patchtokens": patch, "x_norm_regtokens": patch[:, :2]}


def test_a_map_becomes_tokens_row_by_row():
    tokens = own(lambda pixels: pixels[:, :, ::16, ::8]).tokens(images(32))
    assert tokens.grid == (2, 4)
    mean, std = torch.tensor(Preprocess().mean), torch.tensor(Preprocess().std)
    assert equal(tokens.patch[:, 1], (images(32)[:, :, 0, 8] - mean) / std)
    assert equal(tokens.cls, tokens.patch.mean(1))


def test_a_dictionary_of_dinov2_becomes_tokens():
    backbone = own(as_dino)
    tokens = backbone.tokens(images(32))
    assert (tokens.grid, tokens.prefix.shape, backbone.patch_size) == ((2, 2), (2, 2, 3), 16)
    assert torch.equal(tokens.cls, tokens.patch[:, 0])
    assert backbone.tokens(images(64)[:, :, :32]).grid == (2, 4)
    assert not backbone.can_mask


def test_a_dictionary_from_forward_features_is_read_too():
    """The hub's own DINOv2 returns it there, while its forward returns the class token alone."""

    class Hub(nn.Module):
        def forward_features(self, pixels: Tensor) -> dict[str, Tensor]:
            return as_dino(pixels)

    backbone = Backbone(Hub(), img_size=32, preprocess=Preprocess(), source=Provenance("hub"))
    assert torch.equal(backbone.tokens(images(32)).patch, own(as_dino).tokens(images(32)).patch)


def test_tokens_of_ones_own_pass_unchanged():
    def output(pixels: Tensor) -> Tokens:
        patch = pixels[:, :, ::16, ::16].flatten(2).mT
        return Tokens(patch[:, 3], patch, (2, 2), patch[:, 1:3])

    tokens = own(output).tokens(images(32))
    assert torch.equal(tokens.cls, tokens.patch[:, 3])
    assert torch.equal(tokens.prefix, tokens.patch[:, 1:3])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda pixels: pixels.mean((2, 3)), r"own returned \(1, 3\). A module must return attar.Tokens"),
        (lambda pixels: [pixels], "own returned a list. A module must return"),
        (lambda pixels: {"cls": pixels}, "own returned a dict. A module must return"),
        (
            lambda pixels: as_dino(pixels, keep=2),
            "2 patch tokens for an image of 32x32 px, which form no grid",
        ),
        (lambda pixels: as_dino(pixels) | {"x_norm_clstoken": pixels}, "gives cls .* and patch .* on a grid of"),
        (lambda pixels: pixels @ torch.ones(5, 5), "own fails on an image of 32x32 px"),
    ],
)
def test_other_outputs_are_an_error_at_start(output, message):
    with pytest.raises(ModelReferenceError, match=message):
        own(output)


@pytest.mark.parametrize("name", ["pit_xs_224", "coat_tiny"])
def test_timm_models_without_patch_tokens_are_refused(name):
    """PiT hands out its class token alone, CoaT a list: neither may be taken for patches."""
    with pytest.raises(ModelReferenceError, match=f"{name} (hands out 0 patch tokens|returned a list)"):
        load_backbone(name, weights="random")


def test_no_intermediates_without_timms_method():
    with pytest.raises(ModelReferenceError, match="offers no intermediate features"):
        own(as_dino).intermediates(images(32), layers=[-1])


def test_statistics_stay_out_of_the_state_dict():
    backbone = backbone_of("vit")
    assert {key.removeprefix("model.") for key in backbone.state_dict()} == set(backbone.model.state_dict())


@pytest.mark.parametrize(
    "reference", ["resnet10t", "vit_base_patch14_reg4_dinov2?depth=1&embed_dim=32&num_heads=2&patch_size=8"]
)
@pytest.mark.parametrize("bf16", [False, True])
def test_many_images_go_through_in_pieces_that_fit_a_cache_and_come_out_as_one(reference: str, bf16: bool) -> None:
    backbone, seen = load_backbone(reference, weights="random", img_size=32), []
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    images = torch.rand(1201, 3, 32, 32)  # as many pixels as 24.5 of 224 px have; pieces have at most those of 12
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        tokens, vectors = backbone.tokens(images), backbone.embed(images.mul(255).round().byte())
        assert seen == [401, 400, 400] * 2
        with torch.no_grad():
            backbone.eval()
            whole, again = backbone(images).map(Tensor.float), backbone.forward_embed(images.mul(255).round().byte())
    assert seen[6:] == [1201, 1201]  # in training as they come
    assert tokens.grid == whole.grid
    for ours, theirs in ((tokens.cls, whole.cls), (tokens.patch, whole.patch), (tokens.prefix, whole.prefix)):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(vectors, again.float())
    assert backbone.tokens(images[:0]).cls.shape == (0, backbone.embed_dim)
    assert [len(few) for few in cache_sized(torch.empty(2, 3, 900, 900))] == [1, 1]  # no image is cut, no piece empty
    (last,) = backbone.intermediates(images, layers=[-1])
    assert seen[-3:] == [401, 400, 400]
    with torch.no_grad():
        (at_once,) = backbone.eval().forward_intermediates(images, layers=[-1])
    torch.testing.assert_close(last.patch, at_once.patch)
