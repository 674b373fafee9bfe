"""A task model as a folder: the backbone as an ordinary model, its head and class names with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.errors import ModelReferenceError, WeightsError
from attar.export.student import library_of, write_backbone
from attar.models import Backbone, ClassHead, Licence, Provenance, TaskModel, load_backbone
from attar.models.backbone import evaluating
from attar.models.licences import UNKNOWN, licence_beside
from attar.models.references import parse_reference
from attar.utils.io import new_folder, read_json, sha256_file, write_json

_HEAD, _ABOUT = "head.safetensors", "task.json"


def write_task_model(
    folder: Path,
    model: TaskModel,
    *,
    card: str,
    facts: Mapping[str, Any] | None = None,
    licence: Licence | None = None,
    crop_pct: float = 1.0,
) -> None:
    """Write backbone, head, class names and model card; what stood in the folder is replaced in one rename.

    A timm model that classifies is written with its linear head inside, `num_classes` and `label_names`: it loads with
    `timm.create_model("local-dir:FOLDER", pretrained=True)`. Others get `head.safetensors` beside the backbone's files.

    Args:
        folder: Where it goes.
        model: What to write.
        card: Text of the model card.
        facts: What else `task.json` shall hold.
        licence: Of the weights that it was made from.
        crop_pct: Share of the resized image that the centre crop kept where it was judged.
    """
    backbone = model.backbone
    is_whole = model.task == "classification" and library_of(backbone) == "timm"
    whole = with_classifier(model) if is_whole else None
    with new_folder(folder) as temporary:
        if whole is None:
            write_backbone(temporary, backbone, licence=licence, crop_pct=crop_pct)
            save_file({k: v.contiguous() for k, v in model.head.state_dict().items()}, temporary / _HEAD)
        else:
            write_backbone(
                temporary, backbone, model=whole, label_names=model.class_names, licence=licence, crop_pct=crop_pct
            )
        about: dict[str, Any] = {"task": model.task, "head": model.head_kind, "class_names": list(model.class_names)}
        if model.task == "segmentation":
            about |= {"short_side": model.short_side, "stride": model.stride}
        about |= {"reference": backbone.source.name, "img_size": backbone.img_size, "head_inside": whole is not None}
        about |= {"mean": backbone.preprocess.mean, "std": backbone.preprocess.std}
        write_json(temporary / _ABOUT, about | dict(facts or {}))
        (temporary / "README.md").write_text(card, encoding="utf-8")


def builds_itself(folder: Path) -> bool:
    """Whether the folder says all of its backbone, so that a reference would be of no use."""
    return _own_description(folder) is None


def read_task_model(folder: Path, *, reference: str | None = None) -> TaskModel:
    """The task model of a folder, on the CPU, in eval mode.

    Args:
        folder: What `write_task_model` wrote.
        reference: Of a backbone that its folder does not build by itself (`module:`, `open_clip:`), of no use where
            it does; loading a `module:` runs that module's code, so that only the user can name it.

    Raises:
        ModelReferenceError: If the folder holds no task model, or its backbone needs a reference.
        WeightsError: If its weights do not fit.
    """
    about = _about(folder)
    weights = folder / "model.safetensors"
    own = _own_description(folder)
    if own is None:
        backbone = load_backbone(str(folder), img_size=about["img_size"])
    elif reference is None and parse_reference(own["reference"]).kind == "module":
        raise ModelReferenceError(
            f"{folder} holds a module of your own. Loading it runs that module's code, which is for you to allow:"
            f" --reference {own['reference']}"
        )
    else:
        backbone = _load_own(reference or own["reference"], weights, about)
    backbone.normalise_with(type(backbone.preprocess)(tuple(about["mean"]), tuple(about["std"])))
    model = _HEADS[about["task"]](backbone, about)
    head = _head_of(folder) if about["head_inside"] else load_file(folder / _HEAD)
    model.head.load_state_dict(head, strict=True)
    return model.eval()


def _segmenter(backbone: Backbone, about: Mapping[str, Any]) -> TaskModel:
    sizes = {name: about[name] for name in ("short_side", "stride")}
    return TaskModel.segmenter(backbone, about["class_names"], head=about["head"], **sizes)


_HEADS: dict[str, Callable[[Backbone, Mapping[str, Any]], TaskModel]] = {
    "classification": lambda backbone, about: TaskModel.classifier(backbone, about["class_names"]),
    "segmentation": _segmenter,
}


def _own_description(folder: Path) -> dict[str, Any] | None:
    """What attar wrote of a backbone that neither timm nor transformers describes."""
    file = folder / "config.json"
    own: dict[str, Any] | None = read_json(file).get("attar") if file.is_file() else None
    return own


def _about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = read_json(folder / _ABOUT)
    except (OSError, ValueError):
        raise ModelReferenceError(
            f"{folder} holds no task model ({_ABOUT}). Give a run of attar transfer, or a student/ or teacher/ in it."
        ) from None
    return about


def _load_own(reference: str, weights: Path, about: Mapping[str, Any]) -> Backbone:
    backbone = load_backbone(reference, weights="random", img_size=about["img_size"])
    try:
        backbone.model.load_state_dict(load_file(weights), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{weights} does not fit {reference}: {error}. Was it written by this version?") from None
    backbone.source = Provenance(
        reference,
        weights="task model",
        file=str(weights),
        sha256=sha256_file(weights),
        licence=licence_beside(weights) or UNKNOWN,
    )
    return backbone.eval()


def _head_of(folder: Path) -> dict[str, Tensor]:
    """The classifier inside a timm folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    head: nn.Module = model.get_classifier()
    return head.state_dict()


def with_classifier(model: TaskModel) -> nn.Module:
    """A copy of a timm backbone's model with the task's linear head in the place of its own classifier.

    Raises:
        ModelReferenceError: If that model, run by timm, does not say what the task model says: it classifies by other
            features than its class token or pooled map.
    """
    backbone, head = model.backbone, model.head
    name = backbone.source.name
    if not isinstance(head, ClassHead):
        raise ModelReferenceError(f"the head of {name} is no linear classifier, and timm has no place for it.")
    whole: Any = copy.deepcopy(backbone.model)
    if hasattr(whole, "cls_token") and whole.cls_token is not None and getattr(whole, "global_pool", "") != "token":
        whole.reset_classifier(len(model.class_names), global_pool="token")
    else:
        whole.reset_classifier(len(model.class_names))
    classifier = whole.get_classifier()
    is_linear = isinstance(classifier, nn.Linear) and classifier.weight.shape == head.weight.shape
    if is_linear:
        classifier.load_state_dict(head.state_dict())
        whole = whole.to(backbone.mean.device)
    if not is_linear or not _agree(whole, model):
        raise ModelReferenceError(
            f"{name} classifies by other features than those that attar reads: with this task's head timm would give"
            " other answers. Take another architecture, such as fastvit_t8, mobilevitv2_050 or a ViT."
        )
    return whole  # type: ignore[no-any-return]


@torch.no_grad()
def _agree(whole: nn.Module, model: TaskModel) -> bool:
    size = model.backbone.img_size
    images = torch.linspace(0, 1, 2 * 3 * size * size, device=model.backbone.mean.device).view(2, 3, size, size)
    images = (images * 7919) % 1  # no two pixels beside each other are alike
    with evaluating(whole):
        found = whole((images - model.backbone.mean) / model.backbone.std)
    return torch.allclose(found.float(), model.logits(images), rtol=1e-3, atol=1e-4)
