"""Traced programs, ONNX files and their int8 twins say what the model says."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from attar.errors import ConfigError, DataError, Interrupted
from attar.export.onnx import OPSET, OnnxModel, as_taken, check_onnx, write_onnx
from attar.export.program import Deployed, save_program, traced
from attar.export.quantise import quantise
from attar.models import Preprocess, TaskModel
from small_models import backbone

STATISTICS = Preprocess((0.2, 0.5, 0.6), (0.3, 0.2, 0.4))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A ViT with normalisation inside, every output, as program and as ONNX file."""
    folder = tmp_path_factory.mktemp("onnx")
    student = backbone()
    student.normalise_with(STATISTICS)
    torch.manual_seed(0)
    model = TaskModel.classifier(student, ["cat", "dog", "hen"]).eval()
    module = Deployed(model, ("embedding", "patch_tokens", "logits"), normalises=True)
    program = traced(module, module.example())
    write_onnx(folder / "model.onnx", program, inputs=["image"], outputs=module.outputs)
    settings = {"img_size": 32, "normalise": "inside"}
    return model, program, folder / "model.onnx", settings


def images(count, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 5])
def test_file_gives_embedding_patch_tokens_and_logits_of_the_model_for_any_batch(written, count):
    model, program, file, settings = written
    views = images(count)
    found = OnnxModel(file, settings)(as_taken(views, settings))
    right = [model.backbone.embed(views), model.backbone.tokens(views).patch, model.logits(views)]
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=1e-5)
    again = program.module()(views.permute(0, 2, 3, 1))
    for a, b in zip(again, right, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=0, atol=1e-5)


def test_file_names_its_input_outputs_batch_axis_and_opset(written):
    graph = onnx.load(written[2])
    onnx.checker.check_model(graph)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "image": ["batch", 32, 32, 3],
        "embedding": ["batch", 32],
        "patch_tokens": ["batch", 16, 32],
        "logits": ["batch", 3],
    }
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", OPSET)]


def test_int8_twin_is_close_reads_one_batch_at_a_time_and_leaves_attention_alone(written, tmp_path):
    model, _, file, settings = written
    ahead = []

    def batches():
        for seed in range(3):
            ahead.append(seed)
            yield as_taken(images(4, seed), settings)

    quantise(file, tmp_path / "int8.onnx", batches())
    assert ahead == [0, 1, 2]
    views = images(6, 9)
    found = torch.from_numpy(OnnxModel(tmp_path / "int8.onnx", settings)(as_taken(views, settings))[0])
    right = model.backbone.embed(views)
    assert torch.cosine_similarity(found, right).min() > 0.99
    assert not torch.allclose(found, right, atol=1e-6)  # it is another file
    nodes = {output: node for node in onnx.load(tmp_path / "int8.onnx").graph.node for output in node.output}
    products = [node for node in nodes.values() if node.op_type == "MatMul"]
    is_int8 = [
        all(nodes.get(i) is not None and nodes[i].op_type == "DequantizeLinear" for i in n.input) for n in products
    ]
    assert is_int8.count(False) == 4  # two blocks, two products of activations each
    assert is_int8.count(True) >= 8


@pytest.mark.parametrize("error", [DataError("no such folder"), Interrupted(15, "stopped by SIGTERM")])
def test_what_the_images_of_a_calibration_raise_is_no_failure_of_onnxruntime(written, tmp_path, error):
    def batches():
        yield as_taken(images(1), written[3])
        raise error

    with pytest.raises(type(error), match=str(error)):
        quantise(written[2], tmp_path / "int8.onnx", batches())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_a_full_disk_is_no_failure_of_the_exporter(written):
    with pytest.raises(OSError, match="No space left"):
        write_onnx(Path("/dev/full"), written[1], inputs=["image"], outputs=["embedding", "patch_tokens", "logits"])


def test_program_is_saved_and_runs_again(written, tmp_path):
    save_program(tmp_path / "model.pt2", written[1])
    views = images(3)
    found = torch.export.load(tmp_path / "model.pt2").module()(views.permute(0, 2, 3, 1))
    torch.testing.assert_close(found[0].detach(), written[0].backbone.embed(views), rtol=0, atol=1e-5)


def test_evaluators_take_a_file_for_a_backbone(written):
    model, _, file, settings = written
    file = OnnxModel(file, settings)
    assert (file.embed_dim, file.img_size) == (32, 32)
    torch.testing.assert_close(file.tokens(images(2)).cls, model.backbone.tokens(images(2)).cls, rtol=0, atol=1e-5)


def test_logits_of_a_model_without_classes_are_refused():
    with pytest.raises(ConfigError, match="has no classes"):
        Deployed(backbone(), ("logits",), normalises=False)


def test_missing_packages_are_named_with_the_remedy(monkeypatch):
    check_onnx()
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else there(name))
    with pytest.raises(ConfigError, match=r'not installed: onnxscript. Try, .*pip install "\.\[onnx\]"'):
        check_onnx()
