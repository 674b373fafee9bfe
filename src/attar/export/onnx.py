"""A traced program as an ONNX file, and such a file behind the face that evaluators ask."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import ExportedProgram

from attar.errors import ConfigError, ExportError, first_line
from attar.types import Tokens

OPSET = 18
"""Of the files: old enough for onnxruntime, OpenVINO and TensorRT of the last years, and all that ViTs need."""

_MOST_INSIDE = 1_900_000_000  # bytes of weights in one protobuf, which ends at 2 GiB; larger ones lie beside it
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    """Refuse early where packages are missing.

    Raises:
        ConfigError: If one of the extra `onnx` is not installed.
    """
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"--to onnx needs {', '.join(_NEEDED)}; not installed: {', '.join(absent)}."
            ' Try, in the clone of attar: pip install ".[onnx]".'
        )


def write_onnx(file: Path, program: ExportedProgram, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Write the program as ONNX of opset `OPSET`, with named inputs and outputs and a first axis of any length.

    Raises:
        ExportError: If it uses something that ONNX cannot say.
    """
    size = sum(value.nbytes for value in program.state_dict.values())
    chatter = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in chatter]
    try:
        for logger in chatter:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=({0: "batch"},),  # the name of that axis, which the program has forgotten
                verbose=False,
            )
            assert made is not None, "torch.onnx.export returned nothing"
            _make_room(made.model.graph, {*inputs, *outputs})
            made.save(file, external_data=size > _MOST_INSIDE)
    except OSError:  # of the disk
        raise
    except Exception as error:  # the exporter raises many kinds; each means that there is no such file
        reason = first_line(error)
        raise ExportError(
            f"torch cannot write the model as ONNX of opset {OPSET}: {reason}. Try --to torch."
        ) from error
    finally:
        for logger, level in zip(chatter, levels, strict=True):
            logger.setLevel(level)


def _make_room(graph: Any, taken: set[str]) -> None:
    """Rename inner values that are called as inputs or outputs: an operator of torch is called `embedding`."""
    ends = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if value.name in taken and id(value) not in ends:
                value.name = f"{value.name}_inside"


class OnnxModel:
    """An ONNX file run by onnxruntime on the CPU, which evaluators take for a frozen backbone.

    Attributes:
        file: Of the model.
        outputs: Names of what it gives.
        img_size: Height and width of images, in pixels.
        embed_dim: Width of its embedding, or number of its logits.
    """

    def __init__(self, file: Path, settings: Mapping[str, Any], *, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else it slows whoever runs next
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.file, self.settings = file, settings
        self._input = self._session.get_inputs()[0].name
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.img_size: int = settings["img_size"]
        self.embed_dim = int(self._session.get_outputs()[0].shape[1])

    def __call__(self, images: NDArray[Any]) -> list[NDArray[np.float32]]:
        """Outputs of images as the file takes them (`preprocess.prepare`)."""
        found: list[NDArray[np.float32]] = self._session.run(None, {self._input: images})
        return found

    def tokens(self, images: Tensor) -> Tokens:
        """The first output as class token of images (B, 3, S, S), uint8 RGB; patch tokens are not asked for."""
        first = torch.from_numpy(self(as_taken(images, self.settings))[0])
        return Tokens(first, first[:, None, :0], (0, 0), first[:, None, :0])


def as_taken(images: Tensor, settings: Mapping[str, Any]) -> NDArray[Any]:
    """Views (B, 3, S, S) uint8 as a file takes them: `preprocess.prepare` after its resizing."""
    if settings["normalise"] == "inside":
        return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    mean, std = (np.array(settings[name], np.float32)[:, None, None] for name in ("mean", "std"))
    values: NDArray[np.float32] = (images.numpy().astype(np.float32) / np.float32(255) - mean) / std
    return values
