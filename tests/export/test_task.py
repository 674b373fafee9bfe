"""Task models as folders: timm and attar read the same answers from them."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from attar.errors import ModelReferenceError
from attar.export import read_task_model, write_task_model
from attar.models import TaskModel, load_backbone

CLASSES = ["cat", "dog", "eel"]
SMALL_VIT = "vit_tiny_patch16_224?patch_size=8&embed_dim=32&depth=1&num_heads=2"


# a ViT reads its class token; resnet10t's pooling is a module, which differs from its copy's
@pytest.mark.parametrize("reference", [SMALL_VIT, "resnet10t", "mobilevitv2_050"])
def test_timm_and_attar_read_the_same_answers(reference, tmp_path):
    backbone = load_backbone(reference, weights="random", img_size=32)
    model = TaskModel.classifier(backbone, CLASSES).eval()
    with torch.no_grad():
        model.head.weight.normal_()
        model.head.bias.normal_()
    write_task_model(tmp_path / "model", model, card="a card")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.logits(images)
        again = read_task_model(tmp_path / "model").logits(images)
        plain = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
        found = plain((images - backbone.mean) / backbone.std)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "model/config.json").read_text())["label_names"] == CLASSES


def test_a_folder_without_a_task_is_told(tmp_path):
    with pytest.raises(ModelReferenceError, match="task"):
        read_task_model(tmp_path)


@pytest.mark.parametrize("head", ["linear", "deeplabv3"])
@pytest.mark.parametrize("reference", [SMALL_VIT, "resnet10t?channels=(16,16,16,32)&output_stride=8"])
def test_a_segmentation_model_comes_back_with_head_names_and_sizes(reference, head, tmp_path):
    # a last map at stride 8 that came back at 32 would answer otherwise
    pytest.importorskip("segmentation_models_pytorch")
    backbone = load_backbone(reference, weights="random", img_size=32)
    model = TaskModel.segmenter(backbone, CLASSES, head=head, short_side=48, stride=20).eval()
    write_task_model(tmp_path / "model", model, card="a card")
    again = read_task_model(tmp_path / "model")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again.logits(images), model.logits(images))
    assert again.backbone.grid == backbone.grid
    said = (again.task, again.head_kind, again.class_names, again.short_side, again.stride)
    assert said == ("segmentation", head, tuple(CLASSES), 48, 20)
