"""The one adapter: any vision model behind the same face, teacher and student alike."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attar.errors import ConfigError, ModelReferenceError, ShapeError
from attar.models.features import read_intermediates, read_tokens
from attar.models.masking import MaskedPatchEmbed, patch_embedding
from attar.models.tower import Tower
from attar.types import IMAGENET, Tokens, joined
from attar.utils.io import sha256_file

_RANGE = (-0.5, 1.5)  # of [0, 1], with room for what bicubic resizing adds at edges
_PIECE = 12 * 224**2  # pixels of several images (notes/step.md)
_FEW_TOKENS = 300  # at 224 px patches of 14 make 256; of more, a table of all pairs takes too much memory
_REFUSALS = (AssertionError, RuntimeError, ValueError)  # how models complain about an image's size


@dataclass(frozen=True)
class Preprocess:
    """How a model wants its images: statistics of the normalisation that the backbone applies itself."""

    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]


@dataclass(frozen=True)
class Provenance:
    """Where a backbone's weights come from.

    Attributes:
        name: The model reference.
        weights: `random`, or what was loaded (a layout such as `timm` or `dinov2`). `factory` where a `module:` factory
            decided for itself: attar cannot initialise such a model anew, so that `random` leaves it as it was made.
        file: Path of the weight file, or of the folder of its parts; None for random weights.
        sha256: Of that file.
        licence: Of the weights as far as the source says, else `unknown`; None for random weights.
        explained: Keys of the file that the model has no use for, with the reason.
    """

    name: str
    weights: str = "random"
    file: str | None = None
    sha256: str | None = None
    licence: str | None = None
    explained: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_files(
        cls, name: str, files: Sequence[Path], *, weights: str, licence: str | None, explained: Mapping[str, str]
    ) -> Provenance:
        """Of weights in a file, or in several of one folder: then `sha256` is that of their hashes in order."""
        hashes = [sha256_file(file) for file in files]
        return cls(
            name=name,
            weights=weights,
            file=str(files[0] if len(files) == 1 else files[0].parent),
            sha256=hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
            licence=licence,
            explained=tuple(explained.items()),
        )


def cache_sized(images: Tensor) -> Sequence[Tensor]:
    """(B, 3, H, W) for a frozen model, in order; on a CPU in pieces of equal length or of one less, at least an image.

    One block's output for many images does not stay in a CPU's caches for the next block.
    """
    if images.ndim != 4 or images.device.type != "cpu":
        return (images,)
    pixels = len(images) * math.prod(images.shape[-2:])
    return torch.tensor_split(images, max(1, min(len(images), math.ceil(pixels / _PIECE))))


class Backbone(nn.Module):
    """A vision model that turns images in [0, 1] RGB into `Tokens`, normalising for itself.

    Call it (`backbone(images)`) to train it, `tokens(images)` to use it frozen. Wraps timm models of every kind, the
    `Tower` of another library, and any module whose forward returns `Tokens`, DINOv2's dictionary (`x_norm_clstoken`,
    `x_norm_patchtokens`) or a map (B, D, h, w).

    Attributes:
        model: The wrapped module, unchanged; its state dict is what ships.
        embed_dim: Width D of the tokens.
        patch_size: Pixels per token side; for a conv net the stride of its last map.
        img_size: Input height and width in pixels.
        grid: Rows and columns of patch tokens at `img_size`.
        preprocess: Normalisation statistics.
        source: Provenance of the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, img_size: int, preprocess: Preprocess, source: Provenance) -> None:
        super().__init__()
        self.model = model
        self.img_size = img_size
        self.preprocess = preprocess
        self.source = source
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)
        self._masking: MaskedPatchEmbed | None = None
        self._convolves = convolves(model)
        self._fused: list[nn.Module] = []
        self.patch_size = img_size  # until it is measured
        probe = self._probe()
        self.embed_dim = probe.cls.shape[-1]
        self.grid = probe.grid
        self.patch_size = self._stride()
        if isinstance(model, Tower) or isinstance(getattr(model, "num_prefix_tokens", None), int):
            # only where all tokens stand in one sequence; a pyramid's first stages have more than its last
            self._fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
        if (patch_embed := patch_embedding(model, self.patch_size)) is not None:
            self._masking = MaskedPatchEmbed(patch_embed)

    def __repr__(self) -> str:
        """In one line; print `.model` to see its layers."""
        return (
            f"Backbone({self.source.name!r}, weights={self.source.weights!r}, {self.num_parameters / 1e6:.1f}M,"
            f" {self.img_size} px, {self.grid[0]}x{self.grid[1]} tokens of {self.embed_dim})"
        )

    @property
    def can_mask(self) -> bool:
        """Whether patches can be hidden from the model: it embeds each apart, then treats them as a sequence."""
        return self._masking is not None

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the wrapped module."""
        return sum(p.numel() for p in self.model.parameters())

    @property
    def depth(self) -> int:
        """Number of blocks, or stages of a conv net, that `intermediates` can be asked for.

        Raises:
            ModelReferenceError: If the model offers no intermediate features.
        """
        model: Any = self.model
        if isinstance(model, Tower):
            return model.depth
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "feature_info")):
            raise ModelReferenceError(f"{self.source.name} offers no intermediate features (forward_intermediates).")
        return len(model.feature_info)

    def normalise_with(self, preprocess: Preprocess) -> None:
        """Normalise images by other statistics from here on, where the model's own are not those of its weights."""
        self.preprocess = replace(self.preprocess, mean=preprocess.mean, std=preprocess.std)
        self.mean.copy_(torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.std.copy_(torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def recompute_blocks(self) -> None:
        """From here on keep no activations from within blocks for the backward pass, which computes them again.

        Loss and gradients stay the same, memory falls to a block's input each, a forward pass comes on top.

        Raises:
            ConfigError: If the library offers no such thing for this model, or batch norms would count images twice.
        """
        model: Any = self.model
        try:
            if any(isinstance(module, _BatchNorm) for module in model.modules()):
                raise NotImplementedError("it has batch norms, whose statistics a second pass would count twice")
            if isinstance(model, Tower):
                model.recompute_blocks()
            elif hasattr(model, "set_grad_checkpointing"):
                model.set_grad_checkpointing(True)
            else:
                raise NotImplementedError("it has no set_grad_checkpointing, as timm's models have")
            self._fused = []  # what is computed again must be computed the same way
        except (NotImplementedError, AssertionError, ValueError) as error:  # how libraries say that they cannot
            raise ConfigError(
                f"optim.recompute is set, and student {self.source.name} cannot do it: {error}. Leave it out, and split"
                " batches with optim.accumulate where memory is short."
            ) from None

    def forward(self, images: Tensor, *, masks: Tensor | None = None, mask_token: Tensor | None = None) -> Tokens:
        """Tokens with gradient, in the module's current mode.

        Args:
            images: (B, 3, H, W), RGB, float in [0, 1] or uint8.
            masks: (B, N) bool, True where the student must not see the patch.
            mask_token: (1, D), what stands there instead; needed with masks.

        Raises:
            ShapeError: If the images are no (B, 3, H, W), of another size than the model takes, or masks do not fit.
        """
        pixels = self._normalise(images)
        if masks is None:
            return self._tokens(pixels)
        if self._masking is None:
            raise ShapeError(
                f"{self.source.name} has no patch tokens to hide. Set proteus.patch_weight to 0 for such a student."
            )
        assert mask_token is not None, "masks without a mask_token"
        with self._masking.hiding(masks, mask_token):
            return self._tokens(pixels)

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tokens:
        """Tokens for inference: no gradient, eval mode for the call, float32 out. Arguments as in `forward`.

        Raises:
            ShapeError: As `forward`; or if floats lie so far outside [0, 1] that they were normalised, or count to 255.
        """
        with evaluating(self):
            return joined([self(few).map(Tensor.float) for few in cache_sized(self._taken(images))])

    def forward_intermediates(self, images: Tensor, *, layers: list[int], norm: bool = True) -> list[Tokens]:
        """Tokens after chosen blocks with gradient, in the module's current mode; otherwise as `intermediates`."""
        depth = self.depth
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise ModelReferenceError(f"layers {layers}: {self.source.name} has layers 0 to {depth - 1}.")
        wanted = sorted({layer % depth for layer in layers})
        by_layer = dict(zip(wanted, self._intermediates(self._normalise(images), wanted, norm), strict=True))
        return [by_layer[layer % depth] for layer in layers]

    @torch.no_grad()
    def intermediates(self, images: Tensor, *, layers: list[int], norm: bool = True) -> list[Tokens]:
        """Tokens after chosen blocks (or stages of a conv net), for dense heads and probes.

        Args:
            images: As in `forward`.
            layers: Indices of blocks, from 0; negative ones count from the end.
            norm: Apply the model's final norm to each block (conv stages have none).

        Returns:
            One `Tokens` per layer, in the order asked for. `cls` is the class token where the model hands it out.

        Raises:
            ModelReferenceError: If the model offers no intermediate features, or a layer does not exist.
            ShapeError: If the images are of another size than the model takes.
        """
        found: list[list[Tokens]] = [[] for _ in layers]
        with evaluating(self):
            for few in cache_sized(self._taken(images)):
                of_layers = self.forward_intermediates(few, layers=layers, norm=norm)
                for parts, tokens in zip(found, of_layers, strict=True):
                    parts.append(tokens.map(Tensor.float))
        return [joined(found.pop(0)) for _ in layers]  # one layer at a time in memory twice

    def forward_embed(self, images: Tensor) -> Tensor:
        """(B, E) with gradient, in the module's current mode; otherwise as `embed`."""
        pixels = self._normalise(images)
        if not isinstance(self.model, Tower):
            return self._tokens(pixels).cls
        try:
            with self._attention(pixels):
                return self.model.embed(pixels)
        except _REFUSALS as error:
            raise self._in_words(error, pixels) from None

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(B, E) float32: one vector per image, for search and zero-shot, projected where the model projects."""
        with evaluating(self):
            return torch.cat([self.forward_embed(few).float() for few in cache_sized(self._taken(images))])

    def _taken(self, images: Tensor) -> Tensor:
        """Images on the backbone's device, if their range is one of RGB in [0, 1].

        For inference alone: views in training may leave it by random erasing, and their way is ours. It is read where
        the images are; only for floats that lie on a GPU already does that make the host wait, once a call.
        """
        if images.is_floating_point() and images.numel():
            low, high = (bound.item() for bound in torch.aminmax(images.detach()))  # device-to-host sync
            if not _RANGE[0] <= low <= high <= _RANGE[1]:
                raise ShapeError(
                    f"images range from {low:.3g} to {high:.3g}; a backbone takes RGB in [0, 1] and normalises it for"
                    " itself. Leave your own normalisation out; divide 0 to 255 by 255, or give it as uint8."
                )
        return images.to(self.mean.device)

    def _normalise(self, images: Tensor) -> Tensor:
        """Normalised pixels in the model's layout."""
        pixels = self._standardised(images)
        # Convolutions are quickest with channels last, and hand the layout on. Weights keep theirs, which is a file's.
        return pixels.contiguous(memory_format=torch.channels_last) if self._convolves else pixels

    def _standardised(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"images are {tuple(images.shape)}; a backbone takes (B, 3, H, W), RGB.")
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
            if images.dtype == self.mean.dtype:  # a copy of ours: in place, the same numbers in a third of the time
                return images.sub_(self.mean).div_(self.std)
        if not images.is_floating_point():
            raise ShapeError(f"images are {images.dtype}; a backbone takes floats in [0, 1], or uint8.")
        return ((images - self.mean) / self.std).to(self.mean.dtype)

    @contextlib.contextmanager
    def _attention(self, pixels: Tensor) -> Iterator[None]:
        """timm's plain attention under bf16 autocast on a CPU: two products take a fraction of the fused one's time."""
        is_bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        count = math.prod(pixels.shape[-2:]) // self.patch_size**2
        changed: list[Any] = self._fused if is_bf16 and pixels.device.type == "cpu" and count <= _FEW_TOKENS else []
        for module in changed:
            module.fused_attn = False
        try:
            yield
        finally:
            for module in changed:
                module.fused_attn = True

    def _tokens(self, pixels: Tensor) -> Tokens:
        try:
            with self._attention(pixels):
                return read_tokens(self.model, pixels, self.source.name)
        except _REFUSALS as error:
            raise self._in_words(error, pixels) from None

    def _in_words(self, error: Exception, pixels: Tensor) -> Exception:
        """A model's complaint about images of a size it does not take, as our error; any other error as it is."""
        size = tuple(pixels.shape[-2:])
        if isinstance(error, torch.OutOfMemoryError) or size == (self.img_size, self.img_size):
            return error
        return ShapeError(
            f"images are {size[0]}x{size[1]} px, {self.source.name} takes {self.img_size}x{self.img_size} ({error})."
            " Resize them, or load the backbone with another img_size."
        )

    def _intermediates(self, pixels: Tensor, layers: list[int], norm: bool) -> list[Tokens]:
        try:
            with self._attention(pixels):
                if isinstance(self.model, Tower):
                    return self.model.intermediates(pixels, layers, norm=norm)
                return read_intermediates(self.model, pixels, layers, norm=norm, embed_dim=self.embed_dim)
        except _REFUSALS as error:
            in_words = self._in_words(error, pixels)
            if in_words is error and isinstance(error, AssertionError):  # timm's way to refuse an option
                raise ModelReferenceError(
                    f"{self.source.name} cannot give layers {layers} with norm={norm} ({error}). Try norm={not norm}."
                ) from None
            raise in_words from None

    def _probe(self) -> Tokens:
        """One forward on a grey image: widths and grid are measured, not looked up."""
        size = self.img_size
        try:
            with torch.no_grad(), evaluating(self):
                tokens: Tokens = self(torch.full((1, 3, size, size), 0.5, device=self.mean.device))
        except _REFUSALS as error:
            raise ModelReferenceError(
                f"{self.source.name} fails on an image of {size}x{size} px ({error}). Try another img_size."
            ) from error
        cls, patch, grid = tokens.cls.shape, tokens.patch.shape, tokens.grid
        if cls != (1, cls[-1]) or patch != (1, grid[0] * grid[1], cls[-1]) or min(grid) < 1:
            raise ModelReferenceError(
                f"{self.source.name} gives cls {tuple(cls)} and patch {tuple(patch)} on a grid of {grid} for one image."
                " They must be (1, D) and (1, h * w, D)."
            )
        return tokens

    def _stride(self) -> int:
        """Pixels per token side: what the library says if the measured grid agrees (borders may be cut or padded)."""
        if isinstance(self.model, Tower):
            return self.model.patch_size
        info = getattr(self.model, "feature_info", None)
        stride = int(info[-1]["reduction"]) if isinstance(info, list) and info else 0
        if stride and self.grid[0] in (self.img_size // stride, math.ceil(self.img_size / stride)):
            return stride
        return self.img_size // self.grid[0]


def convolves(model: nn.Module) -> bool:
    """Whether a library's model has convolutions behind the one of its images; one's own may rely on the layout."""
    is_of_library = isinstance(model, Tower) or hasattr(model, "forward_intermediates")
    return is_of_library and any(isinstance(part, nn.Conv2d) and part.in_channels > 3 for part in model.modules())


class evaluating:  # noqa: N801  (a context manager, used like a function)
    """Eval mode for a block, then each submodule's own mode again."""

    def __init__(self, module: nn.Module) -> None:
        self.training = [child for child in module.modules() if child.training]
        self.module = module

    def __enter__(self) -> None:
        if self.training:
            self.module.eval()

    def __exit__(self, *_: object) -> None:
        for child in self.training:
            child.training = True
