"""From a reference and weights to a `Backbone`: build the architecture, load strictly, record the provenance."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download
from torch import nn

from attar.errors import ModelReferenceError, WeightsError, did_you_mean
from attar.models.backbone import Backbone, Preprocess, Provenance
from attar.models.files import fetching
from attar.models.layouts import Converted
from attar.models.licences import licence_beside
from attar.models.open_clip import load_open_clip
from attar.models.open_clip_files import meant_here
from attar.models.positions import PosEmbed
from attar.models.references import PLAYGROUND, Reference, parse_reference
from attar.models.transformers_folder import is_transformers_folder, load_transformers
from attar.models.weights import load_weights
from attar.types import Statistics
from attar.utils.io import read_json
from attar.utils.seeding import seeded_torch


def load_backbone(
    reference: str,
    *,
    weights: str | Path = "pretrained",
    img_size: int | None = None,
    pos_embed: PosEmbed = "official",
    trust_torchscript: bool = False,
    seed: int = 0,
) -> Backbone:
    """Load a model by reference as a `Backbone` on the CPU, in eval mode.

    Args:
        reference: timm name with arguments, `open_clip:NAME?pretrained=TAG`, `hf:DIR` or `hf:OWNER/REPOSITORY`,
            `module:package.mod:factory`, or a directory that timm, transformers or attar wrote.
        weights: `pretrained` (the directory's own, or timm's published ones from the model hub), `random`, or a file.
        img_size: Input size in pixels; the model's own by default.
        pos_embed: How position tables of DINOv2 weights are resampled to another input size.
        trust_torchscript: Read a weight file that is a TorchScript archive (OpenAI's CLIP); loading it can run code.
        seed: Names the initialisation of random weights; same seed, same weights.

    Raises:
        ModelReferenceError: If no such model can be built.
        WeightsError: If the weights are missing or one key does not fit.

    Example:
        >>> backbone = load_backbone("vit_tiny_patch16_224?depth=1", weights="random", img_size=64)
        >>> backbone.embed_dim, backbone.patch_size, backbone.grid
        (192, 16, (4, 4))
    """
    parsed = parse_reference(reference)
    if parsed.kind == "module":
        return _load_module(parsed, weights, img_size, seed, trust_torchscript)
    if parsed.kind == "open_clip":
        return load_open_clip(
            parsed, weights=weights, img_size=img_size, trust_torchscript=trust_torchscript, seed=seed
        )
    if parsed.kind == "hf" or (parsed.kind == "directory" and is_transformers_folder(parsed.name)):
        return load_transformers(parsed, weights=weights, img_size=img_size, pos_embed=pos_embed, seed=seed)
    with seeded_torch(seed, "initialisation"):
        model = _build_timm(parsed, img_size)
    size = _input_size(model, img_size)
    file, licence = _locate(parsed, model, weights)
    source, statistics = Provenance(reference), None
    if file is not None:
        converted = load_weights(
            model, file, pos_embed=pos_embed, dinov2=_is_dinov2(model), trust_torchscript=trust_torchscript
        )
        source = _provenance(reference, file, converted, licence)
        has_tag = parsed.kind == "timm" and "." in parsed.name
        statistics = None if converted.statistics_vary and has_tag else converted.statistics
    return Backbone(model, img_size=size, preprocess=_preprocess(model, statistics), source=source).eval()


def _build_timm(reference: Reference, img_size: int | None) -> nn.Module:
    name, arguments = _timm_name(reference), {"num_classes": 0, **reference.arguments}
    asked = arguments.get("img_size", img_size)
    if img_size is not None and asked not in (img_size, (img_size, img_size)):
        raise ModelReferenceError(f"model '{reference}' and img_size={img_size} name two input sizes. Keep one.")
    try:
        if img_size is not None and _takes_img_size(reference):
            arguments["img_size"] = img_size
        model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # constructors raise many kinds; each means that these arguments make no model
        reason = str(error).strip() or type(error).__name__
        raise ModelReferenceError(f"model '{reference}' cannot be built: {reason.rstrip('.')}.") from error
    return model


def _timm_name(reference: Reference) -> str:
    """The name under which timm builds the reference, known to exist."""
    name = reference.name
    if reference.kind == "directory":
        _directory_config(name)
        return f"local-dir:{name}"
    if not timm.is_model(name):
        guess = meant_here(name) or did_you_mean(name.split(".")[0], [*timm.list_models(), PLAYGROUND])
        raise ModelReferenceError(
            f"no model '{name}' in timm {timm.__version__}.{guess} List them with timm.list_models()."
        )
    return name


def _takes_img_size(reference: Reference) -> bool:
    """Models with a table of positions or windows are built for one input size; conv nets take any."""
    if reference.kind == "directory":
        return bool(_directory_config(reference.name).get("fixed_input_size"))
    config = timm.get_pretrained_cfg(reference.name)
    return bool(config and config.fixed_input_size)


def _directory_config(folder: str) -> dict[str, Any]:
    """`pretrained_cfg` of a timm directory."""
    try:
        config = read_json(Path(folder) / "config.json")
        if "attar" in config:
            raise ModelReferenceError(
                f"{folder} holds a student of a module of your own. Loading it runs that module's code, so name it:"
                f" {config['attar']['reference']} with --weights or --teacher-weights {folder}/model.safetensors."
            )
        if timm.is_model(config["architecture"]):
            return dict(config["pretrained_cfg"])
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ModelReferenceError(
        f"{folder}/config.json is not timm's description of a model (architecture and pretrained_cfg)."
        " Give a folder that attar export, a run's student/ or timm's save_for_hf made."
    )


def _is_dinov2(model: nn.Module) -> bool:
    """Whether timm knows the architecture as DINOv2's (in a folder too, whatever its path is called)."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return "dinov2" in str(config.get("architecture"))


def _input_size(model: nn.Module, img_size: int | None) -> int:
    if img_size is not None:
        return img_size
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if built_for:
        return int(built_for[0])
    return int((getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))[-1])


def _preprocess(model: nn.Module, statistics: Statistics | None = None) -> Preprocess:
    """How images are normalised: as the weights' family does it where that is known, else as timm says."""
    config = getattr(model, "pretrained_cfg", None) or {}
    default = Preprocess()
    mean, std = statistics or (config.get("mean") or default.mean, config.get("std") or default.std)
    return Preprocess(tuple(mean), tuple(std))


def _locate(reference: Reference, model: nn.Module, weights: str | Path) -> tuple[Path | None, str | None]:
    """The weight file to read and its licence, or (None, None) for random weights."""
    if weights == "random":
        return None, None
    if weights != "pretrained":
        return Path(weights).expanduser(), "unknown"
    if "num_heads" in reference.arguments and "embed_dim" not in reference.arguments:  # of another width none fits
        raise WeightsError(
            f"model '{reference}' with its own weights has its own number of heads too; with another they would load"
            " and give wrong tokens. Leave num_heads out."
        )
    config = getattr(model, "pretrained_cfg", None) or {}
    licence = str(config.get("license") or "unknown")
    if reference.kind == "directory":
        files = [Path(reference.name) / name for name in ("model.safetensors", "pytorch_model.bin")]
        return next((file for file in files if file.is_file()), files[0]), licence
    repository = config.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"timm publishes no weights for '{reference.name}'. Give a file, or random.")
    return _download(repository, config.get("hf_hub_filename") or "model.safetensors", reference.name), licence


def _download(repository: str, file: str, name: str) -> Path:
    file_instead = "a weight file: --weights or --teacher-weights FILE (weights=FILE in Python)"
    with fetching(f"pretrained weights of '{name}'", instead=file_instead):
        return Path(hf_hub_download(repository, file))


def _provenance(reference: str, file: Path, converted: Converted, licence: str | None) -> Provenance:
    """Where the weights came from; what attar noted beside them stands before what family or timm are known for."""
    return Provenance.of_files(
        reference,
        [file],
        weights=converted.layout,
        licence=licence_beside(file) or converted.licence or licence,
        explained=converted.explained,
    )


def _load_module(
    reference: Reference, weights: str | Path, img_size: int | None, seed: int, trust_torchscript: bool
) -> Backbone:
    """A user's own factory; it runs as the user, by design."""
    factory = _import_factory(reference)
    with seeded_torch(seed, "initialisation"):
        model = factory(**reference.arguments)
    if not isinstance(model, nn.Module):
        raise ModelReferenceError(f"{reference.name} returned a {type(model).__name__}, not a torch.nn.Module.")
    source, statistics = Provenance(f"module:{reference}", weights="factory"), None
    if weights not in ("random", "pretrained"):
        file = Path(weights).expanduser()
        converted = load_weights(model, file, trust_torchscript=trust_torchscript)
        source = _provenance(source.name, file, converted, "unknown")
        statistics = converted.statistics or _statistics_beside(file)
    preprocess = _preprocess(model, statistics)
    return Backbone(model, img_size=_input_size(model, img_size), preprocess=preprocess, source=source).eval()


def _statistics_beside(file: Path) -> Statistics | None:
    """What a student of such a module learned with, where the file lies in the folder that attar wrote."""
    try:
        said = read_json(file.with_name("config.json"))["attar"]
        return tuple(said["mean"]), tuple(said["std"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _import_factory(reference: Reference) -> Any:
    """The callable that a `module:` reference names, checked against the reference's arguments."""
    module_name, _, factory_name = reference.name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:
        raise ModelReferenceError(f"module '{module_name}' cannot be imported: {error}. Is it on PYTHONPATH?") from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value)]
        raise ModelReferenceError(
            f"module '{module_name}' has no factory '{factory_name}'.{did_you_mean(factory_name, known)}"
        )
    try:
        inspect.signature(factory).bind(**reference.arguments)
    except TypeError as error:
        raise ModelReferenceError(f"'{reference}' does not fit its factory: {error}.") from None
    return factory
