"""`hf:` references: image encoders of transformers, from a directory or a repository of the model hub."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.repocard import metadata_load
from torch import Tensor, nn
from yaml import YAMLError

from attar.errors import ModelReferenceError, WeightsError
from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.features import map_tokens
from attar.models.files import not_fetched, read_state_dict
from attar.models.official import HALF, OPENAI
from attar.models.positions import PosEmbed, resample_positions
from attar.models.references import Reference
from attar.models.tower import Tower
from attar.models.weights import described, misfit
from attar.types import IMAGENET, Statistics, Tokens
from attar.utils.io import read_json
from attar.utils.seeding import seeded_torch

_OLDEST = (5, 6)  # older ones name the parts of clip and siglip otherwise
_DESCRIPTIONS = ["config.json", "processor_config.json", "preprocessor_config.json", "README.md"]
_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_TABLE = re.compile(r"(?:^|\.)embeddings\.position_embeddings?(?:\.weight)?$")
_EXPLAINED = {  # keys of whole models that an image encoder has no use for
    re.compile(r"text_model\.|text_projection|logit_(scale|bias)$"): "text tower and logit scale; a backbone has none",
    re.compile(r"classifier\."): "classifier; a backbone has none",
    re.compile(r"(.+\.)?pooler\."): "pooler; tokens do not pass it",
    re.compile(r".*\.position_ids$"): "numbers of positions, which transformers counts itself",
}


@dataclass(frozen=True)
class Family:
    """What transformers' own configuration does not say of a family.

    Attributes:
        model: Class of its image encoder.
        statistics: Mean and std of the images, where the directory does not say.
        norm: Name of the final norm.
        patch_embed: Path of the module that embeds each patch by itself; None for a conv net.
        has_cls: Whether the sequence begins with a class token. Else `cls` is what the model pools.
        returns_normed: Whether the final norm has been applied to what the model returns.
        takes_patches: Whether the model is given patches in place of images.
        has_dinov2_positions: Position tables are resampled as DINOv2's own code does, else as transformers does.
        arguments: For the constructor.
    """

    model: str
    statistics: Statistics
    norm: str
    patch_embed: str | None
    has_cls: bool = True
    returns_normed: bool = True
    takes_patches: bool = False
    has_dinov2_positions: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "dinov2": Family("Dinov2Model", IMAGENET, "layernorm", "embeddings.patch_embeddings", has_dinov2_positions=True),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", IMAGENET, "layernorm", "embeddings.patch_embeddings", has_dinov2_positions=True
    ),
    "dinov3_vit": Family("DINOv3ViTModel", IMAGENET, "norm", "embeddings.patch_embeddings"),
    "dinov3_convnext": Family("DINOv3ConvNextModel", IMAGENET, "layer_norm", None),
    "vit": Family("ViTModel", HALF, "layernorm", "embeddings.patch_embeddings", arguments={"add_pooling_layer": False}),
    "clip_vision_model": Family(
        "CLIPVisionModel", OPENAI, "post_layernorm", "embeddings.patch_embedding", returns_normed=False
    ),
    "siglip_vision_model": Family(
        "SiglipVisionModel", HALF, "post_layernorm", "embeddings.patch_embedding", has_cls=False
    ),
    "siglip2_vision_model": Family(
        "Siglip2VisionModel", HALF, "post_layernorm", "embeddings.patch_embedding", has_cls=False, takes_patches=True
    ),
}
_WHOLE_MODELS = ("clip", "siglip", "siglip2")  # of image and text; their configuration holds the encoder's


class TransformersTower(Tower):
    """An image encoder of transformers: its sequence as `Tokens`, CLIP's with the projection of its embeddings."""

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.model = model
        self.family = family
        config = self.encoder.config
        self.depth = len(config.hidden_sizes) if family.patch_embed is None else config.num_hidden_layers
        self.patch_size = 32 if family.patch_embed is None else config.patch_size
        self.num_prefix = int(family.has_cls) + getattr(config, "num_register_tokens", 0)
        for name, parameter in model.named_parameters():
            if name.endswith("mask_token") or name.startswith("visual_projection"):
                parameter.requires_grad_(False)  # tokens do not pass it, so that it would never get a gradient

    @property
    def encoder(self) -> Any:
        """The image encoder without projection."""
        return getattr(self.model, "vision_model", self.model)

    @property
    def patch_embed(self) -> nn.Module | None:
        """The module that embeds each patch from its own pixels alone."""
        path = self.family.patch_embed
        return self.encoder.get_submodule(path) if path else None

    def forward(self, pixels: Tensor) -> Tokens:
        """Tokens after the final norm."""
        sequence = self.encoder(**self._inputs(pixels)).last_hidden_state
        sequence = sequence if self.family.returns_normed else self._norm(sequence)
        return self._read(sequence, self._grid(pixels), is_normed=True)

    def intermediates(self, pixels: Tensor, layers: list[int], *, norm: bool) -> list[Tokens]:
        """Tokens after chosen blocks, or stages of a conv net."""
        states = self.encoder(**self._inputs(pixels), output_hidden_states=True).hidden_states[1:]  # 0 is the input
        return [self._read_state(states[layer], self._grid(pixels), norm=norm) for layer in layers]

    def embed(self, pixels: Tensor) -> Tensor:
        """CLIP's projected image embedding, not normalised; for others the class token, or what the model pools."""
        cls = self.forward(pixels).cls
        projection: nn.Module | None = getattr(self.model, "visual_projection", None)
        return cls if projection is None else projection(cls)

    def save(self, folder: Path, preprocess: Preprocess, *, img_size: int) -> None:
        """Write what `transformers.AutoModel` and `AutoImageProcessor` load: encoder, configuration, statistics."""
        library, statistics = _library(), {"image_mean": list(preprocess.mean), "image_std": list(preprocess.std)}
        if self.family.takes_patches:
            most = (img_size // self.patch_size) ** 2
            processor = library.Siglip2ImageProcessor(patch_size=self.patch_size, max_num_patches=most, **statistics)
        else:
            size = {"height": img_size, "width": img_size}
            processor = library.ViTImageProcessor(size=size, resample=3, **statistics)  # bicubic
        with _quiet():
            self.encoder.save_pretrained(folder)
            processor.save_pretrained(folder)

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        if not self.family.takes_patches:
            return {"pixel_values": pixels}
        (height, width), side = self._grid(pixels), self.patch_size
        cut = pixels[..., : height * side, : width * side].reshape(len(pixels), 3, height, side, width, side)
        return {
            "pixel_values": cut.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels), height * width, -1),  # (B, N, p * p * 3)
            "pixel_attention_mask": None,  # no image is padded
            "spatial_shapes": torch.tensor([[height, width]] * len(pixels)),
        }

    def _grid(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size

    def _norm(self, sequence: Tensor) -> Tensor:
        return self.encoder.get_submodule(self.family.norm)(sequence)  # type: ignore[no-any-return]

    def _read_state(self, state: Tensor, grid: tuple[int, int], *, norm: bool) -> Tokens:
        """Tokens of a block's output, (B, prefix + N, D), or of a stage's map (B, D, h, w)."""
        if state.ndim == 3:
            return self._read(self._norm(state) if norm else state, grid, is_normed=norm)
        tokens = map_tokens(state)
        is_last = state.shape[1] == self.encoder.config.hidden_sizes[-1]
        return tokens.map(self._norm) if norm and is_last else tokens

    def _read(self, sequence: Tensor, grid: tuple[int, int], *, is_normed: bool) -> Tokens:
        patch, prefix = sequence[:, self.num_prefix :], sequence[:, int(self.family.has_cls) : self.num_prefix]
        if self.family.has_cls:
            return Tokens(sequence[:, 0], patch, grid, prefix)
        head = getattr(self.encoder, "head", None) if is_normed else None
        return Tokens(patch.mean(1) if head is None else head(patch), patch, grid, prefix)


def load_transformers(
    reference: Reference,
    *,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    pos_embed: PosEmbed = "official",
    seed: int = 0,
) -> Backbone:
    """The image encoder of a transformers model as a `Backbone` on the CPU.

    Args:
        reference: `hf:DIR` or `hf:OWNER/REPOSITORY`.
        weights: `pretrained` (the safetensors there), `random`, or a file with their keys.
        img_size: Input size in pixels; the configuration's by default. Position tables are resampled once, for DINOv2
            by `pos_embed`, else as `interpolate_pos_encoding=True` does.
        pos_embed: `official` is the code of DINOv2's authors (transformers leaves out its offset), or `timm`.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If transformers is missing, or the directory holds no model of a known family.
        WeightsError: If the weights are missing or one key does not fit.
    """
    library, name = _library(), f"hf:{reference.name}"
    folder = _folder(reference, weights)
    config = _vision_config(library, folder, name)
    family = FAMILIES[config.model_type]
    size = _set_size(config, img_size, name)
    preprocess = _preprocess(folder, family)
    source = Provenance(name)
    if weights == "random":
        with seeded_torch(seed, "initialisation"):
            model = _build(library, family, config, name)
    else:
        files = _files(folder) if weights == "pretrained" else [Path(weights).expanduser()]
        state, explained = _image_part(files)
        _fit_positions(state, family, config, pos_embed)
        is_projected = weights == "pretrained" and config.model_type == "clip_vision_model" and _projects(folder)
        model = _load(library, family, config, state, is_projected=is_projected, where=", ".join(map(str, files)))
        source = Provenance.of_files(
            name,
            files,
            weights="transformers",
            licence=_licence(folder) if weights == "pretrained" else "unknown",
            explained=explained,
        )
    return Backbone(TransformersTower(model, family), img_size=size, preprocess=preprocess, source=source).eval()


def is_transformers_folder(folder: str) -> bool:
    """Whether a directory's `config.json` is transformers' (timm's has no `model_type`)."""
    try:
        config = read_json(Path(folder) / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config and "architecture" not in config


def _library() -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelReferenceError(
            'hf: references need transformers, which is not installed. Try: pip install "attar[hf]".'
        ) from None
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _OLDEST:
        raise ModelReferenceError(
            f"hf: references need transformers {'.'.join(map(str, _OLDEST))} or newer, {transformers.__version__} is"
            ' installed. Try: pip install "attar[hf]".'
        )
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no reports: what they would say, attar says in its errors."""
    from transformers.utils import logging as talk

    level, shows_bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if shows_bars:
            talk.enable_progress_bar()


def _folder(reference: Reference, weights: str | Path) -> Path:
    """The directory, or the newest snapshot of the hub's repository of that name."""
    folder = Path(reference.name).expanduser()
    if reference.name and folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", reference.name) or reference.name.startswith("."):
        raise ModelReferenceError(
            f"model reference 'hf:{reference.name}' is no folder, and no OWNER/REPOSITORY of the model hub."
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    wanted = _DESCRIPTIONS + (_WEIGHTS if weights == "pretrained" else [])
    try:
        return Path(snapshot_download(reference.name, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many kinds; each means the files did not arrive
        raise not_fetched(f"'hf:{reference.name}'", error, instead="a directory: hf:DIR") from None


def _vision_config(library: Any, folder: Path, name: str) -> Any:
    """transformers' configuration of the image encoder."""
    try:
        kind = read_json(folder / "config.json")["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelReferenceError(
            f"{folder} holds no config.json of transformers (with a model_type). Give what save_pretrained wrote."
        ) from None
    if kind not in (*FAMILIES, *_WHOLE_MODELS):
        known = [*(known.removesuffix("_vision_model") for known in FAMILIES)]
        raise ModelReferenceError(
            f"'{name}' is a model of type {kind}; attar reads {', '.join(known)}."
            " Wrap any other in a factory of your own: module:package.mod:factory."
        )
    try:
        with _quiet():
            config = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # validators raise many kinds; each means that this describes no model
        raise ModelReferenceError(f"{folder}/config.json cannot be read by transformers: {error}.") from None
    return config.vision_config if kind in _WHOLE_MODELS else config


def _set_size(config: Any, img_size: int | None, name: str) -> int:
    """The input size, written into the configuration, so that a student ships with the size it was trained at."""
    if FAMILIES[config.model_type].takes_patches:  # its table has one size and is resampled to the image's
        size = img_size or math.isqrt(config.num_patches) * config.patch_size
    else:
        own = config.image_size
        size = img_size or (own if isinstance(own, int) else own[0])
        config.image_size = size
    if size < getattr(config, "patch_size", 32):
        raise ModelReferenceError(f"'{name}' takes patches that img_size={size} does not hold. Try a larger one.")
    return size


def _preprocess(folder: Path, family: Family) -> Preprocess:
    """Statistics as the directory says, else as the family has them."""
    mean, std = family.statistics
    for file, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if not (folder / file).is_file():
            continue
        try:
            said = read_json(folder / file)
            said = said.get(key) if key else said
            if key and said is None:  # it describes the text's part alone
                continue
            if said.get("do_normalize") is False:
                return Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
            mean, std = tuple(said.get("image_mean") or mean), tuple(said.get("image_std") or std)
            if len(mean) == len(std) == 3 and min(mean) >= 0 and max(mean) <= 1 and min(std) > 0:
                return Preprocess(mean, std)
        except (ValueError, TypeError, AttributeError):
            pass  # no JSON, or values of other kinds
        raise ModelReferenceError(
            f"{folder / file} does not say how images are normalised: image_mean in [0, 1] and image_std above 0, three"
            " numbers each. Mend it, or remove it to take the family's."
        )
    return Preprocess(mean, std)


def _build(library: Any, family: Family, config: Any, name: str) -> nn.Module:
    try:
        return getattr(library, family.model)(config, **family.arguments)  # type: ignore[no-any-return]
    except Exception as error:  # constructors raise many kinds; each means that this makes no model
        raise ModelReferenceError(f"model '{name}' cannot be built: {error}.") from error


def _files(folder: Path) -> list[Path]:
    """The safetensors of a directory, in one file or in shards."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file() and not whole.is_file():
        return _shards(index)
    if not whole.is_file():
        raise WeightsError(
            f"{folder} holds no model.safetensors. Other files are read only when you name one:"
            " --teacher-weights FILE (weights=FILE in Python)."
        )
    return [whole]


def _shards(index: Path) -> list[Path]:
    try:
        if shards := sorted({index.parent / Path(shard).name for shard in read_json(index)["weight_map"].values()}):
            return shards
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise WeightsError(f"{index} names no files (weight_map). Copy or download the directory again.")


def _image_part(files: list[Path]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The image encoder's tensors, and keys of the rest with the reason to leave them out."""
    state = {key: value for file in files for key, value in read_state_dict(file).items()}
    explained = {key: why for key in state for pattern, why in _EXPLAINED.items() if pattern.match(key)}
    # copies, as transformers takes tensors for parameters as they are, and these are maps of the file
    kept = {key: value.clone() for key, value in state.items() if key not in explained}
    quantised = [f"{key} is {described(value)}" for key, value in kept.items() if not value.is_floating_point()]
    if quantised:
        raise misfit(str(files[0]), misshapen=quantised)
    return kept, explained


def _fit_positions(state: dict[str, Tensor], family: Family, config: Any, pos_embed: PosEmbed) -> None:
    """Bring tables of positions to the configuration's grid; one that does not fit is left for the key check."""
    if family.takes_patches:
        return
    for key in [key for key in state if _TABLE.search(key)]:
        table = state[key] if state[key].ndim == 3 else state[key][None]  # (1, cls + n * n, D)
        side, num_cls = config.image_size // config.patch_size, int(family.has_cls)
        if table.ndim != 3 or math.isqrt(table.shape[1] - num_cls) ** 2 != table.shape[1] - num_cls:
            continue
        fitted = resample_positions(
            table,
            (side, side),
            num_prefix=num_cls,
            how=pos_embed if family.has_dinov2_positions else "transformers",
            has_registers=hasattr(config, "num_register_tokens"),
        )
        state[key] = fitted.view(-1, fitted.shape[-1]) if state[key].ndim == 2 else fitted


def _projects(folder: Path) -> bool:
    """Whether a CLIP directory must hold the projection of its embeddings."""
    without = {"CLIPVisionModel", "CLIPForImageClassification"}
    return without.isdisjoint(read_json(folder / "config.json").get("architectures") or ())


def _load(
    library: Any, family: Family, config: Any, state: dict[str, Tensor], *, is_projected: bool, where: str
) -> nn.Module:
    """The model with these tensors, by transformers' own renaming of keys; each must fit."""
    is_projected = is_projected or any(key.startswith("visual_projection") for key in state)
    cls = getattr(library, f"{family.model}WithProjection" if is_projected else family.model)
    with _quiet(), seeded_torch(0, "initialisation"):
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the list, with all others
            **family.arguments,
        )
    missing, left_over, misshapen = info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]
    if missing or left_over or misshapen or info["error_msgs"]:
        shapes = [f"{_in_file(model, key)} is {tuple(a)}, the model has {tuple(b)}" for key, a, b in misshapen]
        raise misfit(
            where,
            missing=[_in_file(model, key) for key in missing],
            left_over=[_in_file(model, key) for key in left_over],
            misshapen=[*shapes, *map(str, info["error_msgs"])],
        )
    return model  # type: ignore[no-any-return]


def _in_file(model: nn.Module, key: str) -> str:
    """What transformers calls a key in the files that it writes."""
    from transformers.core_model_loading import revert_weight_conversion

    return str(next(iter(revert_weight_conversion(model, {key: torch.zeros(1)}))))


def _licence(folder: Path) -> str:
    """As the model card says in its front matter."""
    try:
        said = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, YAMLError):  # no card, or one whose front matter cannot be read
        said = {}
    return str(said.get("license_name") or said.get("license") or "unknown")
