"""`hf:` references: a directory of transformers, or a repository of the model hub, to a `Backbone`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.repocard import metadata_load
from torch import Tensor, nn
from yaml import YAMLError

from attar.errors import ModelReferenceError, WeightsError
from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.files import fetching, noted, read_checkpoint, wrapper_of
from attar.models.licences import licence_beside
from attar.models.positions import PosEmbed, resample_positions
from attar.models.references import Reference
from attar.models.transformers import FAMILIES, Family, TransformersTower, import_transformers, quiet
from attar.models.weights import described, misfit
from attar.utils.io import read_json
from attar.utils.seeding import seeded_torch

_DESCRIPTIONS = ["config.json", "processor_config.json", "preprocessor_config.json", "README.md"]
_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_TABLE = re.compile(r"(?:^|\.)embeddings\.position_embeddings?(?:\.weight)?$")
_EXPLAINED = {  # keys of whole models that an image encoder has no use for
    re.compile(r"text_model\.|text_projection|logit_(scale|bias)$"): "text tower and logit scale; a backbone has none",
    re.compile(r"classifier\."): "classifier; a backbone has none",
    re.compile(r"(.+\.)?pooler\."): "pooler; tokens do not pass it",
    re.compile(r".*\.position_ids$"): "numbers of positions, which transformers counts itself",
}
WHOLE_MODELS = ("clip", "siglip", "siglip2")  # of image and text; their configuration holds the encoder's


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
        reference: `hf:DIR`, `hf:OWNER/REPOSITORY` or `hf:OWNER/REPOSITORY@REVISION`.
        weights: `pretrained` (the safetensors there), `random`, or a file with their keys.
        img_size: Input size in pixels; the configuration's by default. Position tables are resampled once, for DINOv2
            by `pos_embed`, else as `interpolate_pos_encoding=True` does.
        pos_embed: `official` is the code of DINOv2's authors (transformers leaves out its offset), or `timm`.
        seed: Names the initialisation of random weights.

    Raises:
        ModelReferenceError: If transformers is missing, or the directory holds no model of a known family.
        WeightsError: If the weights are missing or one key does not fit.
    """
    library, name = import_transformers(), f"hf:{reference.name}"
    folder = folder_of(reference, weights)
    config = _vision_config(library, folder, name)
    family = FAMILIES[config.model_type]
    size = _set_size(config, img_size, name)
    preprocess = _preprocess(folder, family)
    source = Provenance(name)
    if weights == "random":
        with seeded_torch(seed, "initialisation"):
            model = _build(library, family, config, name)
    else:
        files = weight_files(folder) if weights == "pretrained" else [Path(weights).expanduser()]
        state, explained, part = part_of(files, _EXPLAINED)
        _fit_positions(state, family, config, pos_embed)
        is_projected = weights == "pretrained" and config.model_type == "clip_vision_model" and _projects(folder)
        is_projected = is_projected or any(key.startswith("visual_projection") for key in state)
        cls = getattr(library, f"{family.model}WithProjection" if is_projected else family.model)
        model = load_strictly(cls, config, state, where=", ".join(map(str, files)), **family.arguments)
        source = Provenance.of_files(
            name,
            files,
            weights=noted("transformers", part),
            licence=licence_of(folder) if weights == "pretrained" else "unknown",
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


def folder_of(reference: Reference, weights: str | Path, *, also: Sequence[str] = ()) -> Path:
    """The directory, or a snapshot of the hub's repository: the newest, or the one after `@`.

    Args:
        reference: A parsed `hf:` reference.
        weights: `pretrained` has the repository's fetched.
        also: Patterns of other files to fetch.

    Raises:
        ModelReferenceError: If it is neither a directory nor the name of a repository.
        WeightsError: If the files do not arrive.
    """
    folder = Path(reference.name).expanduser()
    if reference.name and folder.is_dir():
        return folder
    named = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", reference.name)
    if named is None:
        raise ModelReferenceError(
            f"model reference 'hf:{reference.name}' is no folder, and no OWNER/REPOSITORY of the model hub"
            " (or OWNER/REPOSITORY@REVISION)."
        )
    wanted = [*_DESCRIPTIONS, *also] + (_WEIGHTS if weights == "pretrained" else [])
    with fetching(f"'hf:{reference.name}'", instead="a directory: hf:DIR"):
        return Path(snapshot_download(named[1], revision=named[2], allow_patterns=wanted))


def read_kind(folder: Path) -> str:
    """The `model_type` of a directory.

    Raises:
        ModelReferenceError: If it says none.
    """
    try:
        return str(read_json(folder / "config.json")["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelReferenceError(
            f"{folder} holds no config.json of transformers (with a model_type). Give what save_pretrained wrote."
        ) from None


def read_config(library: Any, folder: Path) -> Any:
    """transformers' configuration of the whole model in a directory.

    Raises:
        ModelReferenceError: If it describes no model.
    """
    try:
        with quiet():
            return library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # validators raise many kinds; each means that this describes no model
        raise ModelReferenceError(f"{folder}/config.json cannot be read by transformers: {error}.") from None


def _vision_config(library: Any, folder: Path, name: str) -> Any:
    """transformers' configuration of the image encoder."""
    kind = read_kind(folder)
    if kind not in (*FAMILIES, *WHOLE_MODELS):
        known = [*(known.removesuffix("_vision_model") for known in FAMILIES)]
        raise ModelReferenceError(
            f"'{name}' is a model of type {kind}; attar reads {', '.join(known)}."
            " Wrap any other in a factory of your own: module:package.mod:factory."
        )
    config = read_config(library, folder)
    if kind not in WHOLE_MODELS:
        return config
    if hasattr(config, "projection_dim"):  # a whole CLIP goes by its own, whatever its image part says
        config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


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


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a directory, in one file or in shards.

    Raises:
        WeightsError: If there are none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if index.is_file() and not whole.is_file():
        return _shards(index)
    if not whole.is_file():
        raise WeightsError(
            f"{folder} holds no model.safetensors. Other files are read only when you name one:"
            " --weights or --teacher-weights FILE (weights=FILE in Python)."
        )
    return [whole]


def _shards(index: Path) -> list[Path]:
    try:
        if shards := sorted({index.parent / Path(shard).name for shard in read_json(index)["weight_map"].values()}):
            return shards
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise WeightsError(f"{index} names no files (weight_map). Copy or download the directory again.")


def part_of(
    files: Sequence[Path], explained: Mapping[re.Pattern[str], str]
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """One encoder's tensors, keys of the rest with the reason to leave them out, and the part of the file.

    Args:
        files: Of the whole model.
        explained: Patterns of keys that the encoder has no use for, and why.

    Raises:
        WeightsError: If a file cannot be read, or its tensors are quantised.
    """
    parts = [read_checkpoint(file) for file in files]
    state = {key.removeprefix(wrapper_of(part)): value for part, _ in parts for key, value in part.items()}
    passed = {key: why for key in state for pattern, why in explained.items() if pattern.match(key)}
    # copies, as transformers takes tensors for parameters as they are, and these are maps of the file
    kept = {key: value.clone() for key, value in state.items() if key not in passed}
    quantised = [f"{key} is {described(value)}" for key, value in kept.items() if not value.is_floating_point()]
    if quantised:
        raise misfit(str(files[0]), misshapen=quantised)
    return kept, passed, parts[0][1]


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


def load_strictly(cls: Any, config: Any, state: dict[str, Tensor], *, where: str, **arguments: Any) -> nn.Module:
    """A model of transformers with these tensors, by transformers' own renaming of keys.

    Raises:
        WeightsError: If one of them does not fit.
    """
    with quiet(), seeded_torch(0, "initialisation"):
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the list, with all others
            **arguments,
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
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # not public: the name in the model will do for the message
        return key
    return str(next(iter(revert_weight_conversion(model, {key: torch.zeros(1)}))))


def licence_of(folder: Path) -> str:
    """Of a directory's weights, as attar noted it, else as the model card says in its front matter."""
    if noted_there := licence_beside(folder / "config.json"):
        return noted_there
    try:
        said = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, YAMLError):  # no card, or one whose front matter cannot be read
        said = {}
    return str(said.get("license_name") or said.get("license") or "unknown")
