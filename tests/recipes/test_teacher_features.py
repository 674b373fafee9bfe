"""What a teacher said of images, where images cannot be read: nothing is learned from a vector that nobody has made."""

import numpy as np
import pytest
import torch

from attar.curation.feature_store import begin, seal, write_rows
from attar.data.sources import open_source
from attar.errors import DataError
from attar.methods import stored_targets
from attar.models import load_backbone
from attar.recipes.asked_anew import ImageTeacher
from attar.recipes.teacher_features import _check_images
from attar.recipes.vl_assembly import _never_zero, _templates
from attar.types import Batch
from small_models import TINY
from small_runs import write_pictures


def batch_of(rows):
    return Batch(
        views=torch.zeros(len(rows), 3, 2, 2),
        samples=torch.tensor(rows),
        view_ids=torch.zeros(len(rows), dtype=torch.int64),
        positions=torch.arange(len(rows)),
        step=0,
        global_batch_size=len(rows),
        names=tuple(f"{row:02}.png" for row in rows),
    )


def test_a_vector_that_was_never_made_is_not_learned_from():
    stored = np.eye(4, dtype=np.float16)
    stored[2] = 0
    targets = _never_zero(stored_targets(stored))
    assert targets(batch_of([3, 0])).tolist() == [[0, 0, 0, 1], [1, 0, 0, 0]]
    with pytest.raises(DataError, match=r"02\.png could not be read when the teacher was asked.*same command again"):
        targets(batch_of([3, 2]))


def test_the_teacher_sees_what_can_be_read_and_it_is_told_if_nothing_can(tmp_path):
    images = write_pictures(tmp_path / "images", 3)
    source = open_source(str(images))
    teacher = ImageTeacher(load_backbone(TINY, weights="random", img_size=32), bf16=False, workers=0)
    whole, _ = teacher.of_images(source, np.arange(3))
    (images / "001.png").write_bytes(b"gone")
    found, places = teacher.of_images(source, np.arange(3))
    assert places.tolist() == [0, 2]
    torch.testing.assert_close(found, whole[[0, 2]])
    begin(tmp_path / "vectors", {}, "images")
    write_rows(tmp_path / "vectors/vectors-00000.npy", np.array([[0.0], [1.0], [0.0]], np.float16))
    seal(tmp_path / "vectors", 3)
    with pytest.raises(DataError, match=r"none of the 1 images .* such as 001\.png"):
        _check_images(teacher, source, tmp_path / "vectors", tmp_path)


@pytest.mark.parametrize(
    ("text", "said"), [(b"a photo of caf\xe9 {}", "cannot be read.*UTF-8"), (b"# {}\n", "no sent")]
)
def test_templates_that_are_none_are_told(text, said, tmp_path):
    (tmp_path / "templates.txt").write_bytes(text)
    with pytest.raises(DataError, match=said):
        _templates(str(tmp_path / "templates.txt"))
