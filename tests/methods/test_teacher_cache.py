"""The teacher is asked once for each view, and what it said is what comes back."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from attar.methods.answer_formats import PLAIN_FORMATS
from attar.methods.teacher_cache import TeacherCache
from attar.types import Batch
from small_runs import holder


def batch_of(samples, views):
    views_of = 10.0 * torch.tensor(samples) + torch.tensor(views)
    return Batch(
        views=views_of[:, None, None, None].expand(-1, 3, 2, 2),
        samples=torch.tensor(samples),
        view_ids=torch.tensor(views),
        positions=torch.arange(len(samples)),
        step=0,
        global_batch_size=len(samples),
    )


class Teacher:
    """Says of sample s in view v the numbers 10 s + v and their like; remembers what it was asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, views):
        number = views[:, 0, 0, 0]
        self.asked += number.tolist()
        return number[:, None, None] + torch.arange(6.0).view(2, 3) / 7, -number[:, None]


@pytest.fixture
def teacher():
    return Teacher()


def test_a_view_is_asked_for_once_and_comes_back_bit_for_bit(tmp_path, teacher):
    cache = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={"teacher": "a"})
    first, second = batch_of([0, 3], [2, 0]), batch_of([3, 0], [0, 2])
    said = cache(first, teacher)
    again = cache(second, teacher)
    assert teacher.asked == [2, 2, 30]  # the first one once more, for the shapes of answers
    assert [tensor.shape for tensor in again] == [(2, 2, 3), (2, 1)]
    assert all(torch.equal(one, other) for one, other in zip(said, Teacher()(first.views), strict=True))
    assert all(torch.equal(one, other.flip(0)) for one, other in zip(again, said, strict=True))


def test_two_runs_do_not_begin_the_same_files(tmp_path, teacher):
    # the second waits until the first has begun them, and finds them: to begin them anew would cut them off
    batch = batch_of([0, 3], [2, 0])
    caches = [TeacherCache(tmp_path / "views", num_samples=4, num_views=3, identity={}) for _ in range(2)]
    with holder(tmp_path / "views/.lock", 1.0):
        started = time.monotonic()
        caches[0](batch, teacher)
        assert time.monotonic() - started > 0.9
    kept = (tmp_path / "views/values.f32").stat().st_ino
    caches[1](batch, teacher)
    assert caches[1].num_kept() == 2
    assert (tmp_path / "views/values.f32").stat().st_ino == kept


def test_of_a_batch_the_unknown_views_alone_are_asked_for_each_once(tmp_path, teacher):
    # with repeated augmentation few batches are known whole before all of the cache is
    cache = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={})
    for batch in (batch_of([0], [1]), batch_of([2, 0, 1, 2], [2, 1, 0, 2]), batch_of([1, 2, 0], [1, 2, 1])):
        said = cache(batch, teacher)
        assert all(torch.equal(one, other) for one, other in zip(said, Teacher()(batch.views), strict=True))
    assert teacher.asked == [1, 1, 22, 10, 11]


def test_what_was_said_outlives_the_process_unless_something_else_is_asked(tmp_path, teacher):
    def fresh(name):
        teacher.asked.clear()
        TeacherCache(tmp_path, 4, 3, {"teacher": name})(batch_of([0, 1], [0, 1]), teacher)
        return teacher.asked

    assert fresh("a") == [0, 0, 11]
    assert fresh("a") == []
    assert fresh("b") == [0, 0, 11]  # a's answers are not b's


def test_what_is_not_answered_takes_no_memory(tmp_path, teacher):
    cache = TeacherCache(tmp_path, num_samples=1_000_000, num_views=8, identity={})
    cache(batch_of([999_999], [7]), teacher)
    values = tmp_path / "values.f32"
    assert values.stat().st_size == 8_000_000 * 7 * 4
    assert values.stat().st_blocks * 512 < 1 << 20  # a hole but for one page
    assert np.count_nonzero(np.fromfile(tmp_path / "sums.u32", np.uint32)) == 1


def test_a_damaged_answer_is_asked_for_again(tmp_path, teacher):
    cache, batch = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={}), batch_of([1, 2], [1, 0])
    said = cache(batch, teacher)
    values = np.memmap(tmp_path / "values.f32", np.float32, "r+", shape=(12, 7))
    values[4, 3] += 1  # of image 1 in view 1
    values.flush()
    teacher.asked.clear()
    again = cache(batch, teacher)
    assert teacher.asked == [11]
    assert all(torch.equal(one, other) for one, other in zip(said, again, strict=True))


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_the_first_epoch_learns_from_what_later_ones_read(name, tmp_path, teacher):
    cache = TeacherCache(tmp_path, 4, 3, {"format": name}, PLAIN_FORMATS[name])
    batch = batch_of([3, 1], [2, 1])
    first, later = cache(batch, teacher), cache(batch, teacher)
    assert all(torch.equal(one, other) for one, other in zip(first, later, strict=True))
    assert not torch.equal(first[0], teacher(batch.views)[0])
    kept = cache.kept(3, 2)
    assert all(torch.equal(one[:1], other) for one, other in zip(first, kept, strict=True))
    size = cache.bytes_per_view([[2, 3], [1]])
    assert size == {"float16": 2 * 7, "int8": 7 + 4 * (2 + 1)}[name] + 4
    assert sum(file.stat().st_size for file in tmp_path.glob("*.[iuf]*")) == 4 * 3 * size
