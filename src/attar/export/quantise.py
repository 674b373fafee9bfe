"""int8 files by onnxruntime's static quantisation: weights by channel, activations by what they were on images."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from attar.errors import AttarError, ExportError, first_line

_QUANTISED = ["Conv", "Gemm", "MatMul"]


def quantise(source: Path, target: Path, images: Iterable[NDArray[Any]]) -> None:
    """Write an int8 twin of an ONNX file, as QDQ: pairs of QuantizeLinear and DequantizeLinear.

    Products of weights and activations become int8; products of activations alone (attention), softmax and norms stay
    float32, since they cost much accuracy and little time.

    Args:
        source: The float32 file.
        target: Where the int8 file goes.
        images: Batches as the file takes them, read one after the other: the ranges of activations are what they see.

    Raises:
        ExportError: If onnxruntime cannot quantise the file. What the images raise passes as it is.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands one batch at a time to the calibration."""

        def __init__(self) -> None:
            self.batches: Iterator[NDArray[Any]] = iter(images)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"image": batch}

    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # advice to pre-process, which was followed
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            simple = Path(folder) / "simple.onnx"
            quant_pre_process(source, simple, skip_symbolic_shape=True)
            quantize_static(
                simple,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTISED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=_products_of_activations(simple),
            )
    except (AttarError, OSError):  # of the images, of a signal, of the disk
        raise
    except Exception as error:  # onnxruntime raises many kinds; each means that there is no such file
        reason = first_line(error)
        raise ExportError(f"onnxruntime cannot quantise {source.name}: {reason}. Leave --calibration out.") from error
    finally:
        logging.root.setLevel(level)


def _products_of_activations(file: Path) -> list[str]:
    """Names of the products without a weight in them: queries by keys, attention by values."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]
