"""A file that says something else is found out, by how much, and with which images."""

import numpy as np
import pytest

from attar.errors import ExportError
from attar.export.parity import BATCHES, compare

IMAGES = [np.full((3, 4, 4), k + 1, np.float32) for k in range(sum(BATCHES))]


def says(batch):
    return [batch.mean((2, 3))]


RIGHT = [np.stack([image.mean((1, 2)) for image in IMAGES])]


def test_equal_outputs_pass_and_every_image_is_asked_once_in_each_size_of_batch():
    asked = []
    parity = compare(lambda batch: asked.append((batch[:, 0, 0, 0] - 1).tolist()) or says(batch), IMAGES, RIGHT)
    assert [len(batch) for batch in asked] == list(BATCHES)
    assert [k for batch in asked for k in batch] == list(range(len(IMAGES)))
    assert parity.apart == 0
    assert parity.cosine == pytest.approx(1)
    parity.check(1e-9, what="model.onnx")


def test_a_difference_in_the_last_image_alone_fails_with_its_size():
    right = [RIGHT[0].copy()]
    right[0][-1, 2] += 0.5
    parity = compare(says, IMAGES, right)
    assert parity.apart == pytest.approx(0.5)
    with pytest.raises(ExportError, match=r"model.onnx differs from the model by 5.00e-01 on 10 images") as error:
        parity.check(1e-4, what="model.onnx")
    assert error.value.exit_code == 1
    assert "--tolerance" in str(error.value)


def test_tolerance_counts_in_units_of_the_largest_value():
    right = [1000 * RIGHT[0]]
    parity = compare(lambda batch: [1000 * says(batch)[0] + 0.5], IMAGES, right)  # 0.5 of 10,000
    parity.check(1e-4, what="x")
    with pytest.raises(ExportError):
        parity.check(4e-5, what="x")


def test_what_is_no_number_never_passes():
    parity = compare(lambda batch: [says(batch)[0] * np.nan], IMAGES, RIGHT)
    with pytest.raises(ExportError, match="no finite numbers"):
        parity.check(1e9, what="x")


def test_each_output_is_compared_in_units_of_its_own_largest_value():
    right = [RIGHT[0], 1000 * RIGHT[0]]
    parity = compare(lambda batch: [says(batch)[0] + 0.01, 1000 * says(batch)[0] + 0.1], IMAGES, right)
    assert (parity.apart, parity.largest) == (pytest.approx(0.01, rel=1e-3), 10)  # a thousandth of it, not 1e-6
    with pytest.raises(ExportError, match=r"differs from the model by 1.00e-02"):
        parity.check(5e-4, what="x")


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("side", ["found", "right"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_no_number_fails_in_whichever_output(where, side, value):
    right = [RIGHT[0].copy(), 1000 * RIGHT[0]]
    if side == "right":
        right[where][3, 0] = value

    def run(batch):
        outputs = [says(batch)[0] + 1, 1000 * says(batch)[0]]  # the first is wrong beside it
        if side == "found":
            outputs[where][0, 0] = value
        return outputs

    with np.errstate(invalid="ignore"):
        parity = compare(run, IMAGES, right)
    with pytest.raises(ExportError, match="no finite numbers"):
        parity.check_finite(what="x")


def test_another_shape_is_refused():
    with pytest.raises(ExportError, match=r"shape \(10, 2\)"):
        compare(lambda batch: [says(batch)[0][:, :2]], IMAGES, RIGHT)
