"""What a teacher said of images, where images cannot be read: nothing is learned from a vector that nobody has made."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attar.curation.feature_store import begin, check_sealed, seal, sealed_rows, unreadable_rows, write_rows
from attar.data.sources import open_source
from attar.errors import DataError
from attar.methods import stored_targets
from attar.models import load_backbone
from attar.recipes.asked_anew import ImageTeacher
from attar.recipes.teacher_features import _check_images, _mend
from attar.recipes.vl_assembly import _never_unread, _templates
from attar.types import Batch
from attar.utils.progress import Log
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
    stored[1:3] = 0  # the teacher's answer to 1 is zero, 2 could not be read
    targets = _never_unread(stored_targets(stored), np.array([2]))
    assert targets(batch_of([3, 1])).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    with pytest.raises(DataError, match=r"02\.png could not be read when the teacher was asked.*same command again"):
        targets(batch_of([3, 2]))


def store_of(folder, rows, unreadable):
    begin(folder, {}, "images")
    for number, part in enumerate(rows):
        write_rows(folder / f"vectors-{number:05}.npy", np.array(part, np.float16))
    seal(folder, sum(map(len, rows)), unreadable)
    return folder


def test_images_that_can_be_read_again_are_asked_about_file_by_file(tmp_path, capsys):
    images = write_pictures(tmp_path / "images", 6)
    source = open_source(str(images))
    teacher = ImageTeacher(load_backbone(TINY, weights="random", img_size=32), bf16=False, workers=0)
    whole, _ = teacher.of_images(source, np.arange(6))
    width = whole.shape[1]
    (images / "001.png").write_bytes(b"still gone")
    zeros = np.zeros((2, width))
    store = store_of(tmp_path / "vectors", [zeros, np.ones((2, width)), zeros], [0, 1, 5])  # of 4 the teacher said 0
    before = (store / "vectors-00001.npy").stat().st_mtime_ns
    _mend(teacher, source, store, Log())
    check_sealed(store, {}, "images")
    assert unreadable_rows(store).tolist() == [1]
    assert "2 could not be read before" in capsys.readouterr().out
    rows = torch.from_numpy(sealed_rows(store)[np.arange(6)]).float()
    torch.testing.assert_close(rows[[0, 5]], F.normalize(whole[[0, 5]], dim=1), atol=1e-3, rtol=0)
    assert not rows[[1, 4]].any()
    assert (store / "vectors-00001.npy").stat().st_mtime_ns == before
    sealed = (store / "sealed.json").stat().st_mtime_ns
    _mend(teacher, source, store, Log())  # an answer that is zero is an answer
    assert (store / "sealed.json").stat().st_mtime_ns == sealed


def test_the_teacher_sees_what_can_be_read_and_it_is_told_if_nothing_can(tmp_path):
    images = write_pictures(tmp_path / "images", 3)
    source = open_source(str(images))
    teacher = ImageTeacher(load_backbone(TINY, weights="random", img_size=32), bf16=False, workers=0)
    whole, _ = teacher.of_images(source, np.arange(3))
    (images / "001.png").write_bytes(b"gone")
    found, places = teacher.of_images(source, np.arange(3))
    assert places.tolist() == [0, 2]
    torch.testing.assert_close(found, whole[[0, 2]])
    store = store_of(tmp_path / "vectors", [[[0.0], [1.0], [0.0]]], [])
    with pytest.raises(DataError, match=r"none of the 1 images .* such as 001\.png"):
        _check_images(teacher, source, store, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"), [(b"a photo of caf\xe9 {}", "cannot be read.*UTF-8"), (b"# {}\n", "no sent")]
)
def test_templates_that_are_none_are_told(text, said, tmp_path):
    (tmp_path / "templates.txt").write_bytes(text)
    with pytest.raises(DataError, match=said):
        _templates(str(tmp_path / "templates.txt"))
