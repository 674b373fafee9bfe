"""The teacher is asked once for each view, and what it said is what comes back."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from attar.methods.teacher_cache import TeacherCache
from attar.types import Batch
from small_runs import holder


def batch_of(samples, views):
    views_of = torch.zeros(len(samples), 3, 2, 2)
    return Batch(
        views=views_of,
        samples=torch.tensor(samples),
        view_ids=torch.tensor(views),
        positions=torch.arange(len(samples)),
        step=0,
        global_batch_size=len(samples),
    )


class Teacher:
    """Says of sample s in view v the numbers 10 s + v and their like."""

    def __init__(self):
        self.asked = 0

    def of(self, batch):
        def ask():
            self.asked += 1
            number = 10 * batch.samples + batch.view_ids
            return number[:, None, None] + torch.arange(6.0).view(2, 3) / 7, -number[:, None].float()

        return ask


@pytest.fixture
def teacher():
    return Teacher()


def test_a_view_is_asked_for_once_and_comes_back_bit_for_bit(tmp_path, teacher):
    cache = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={"teacher": "a"})
    first, second = batch_of([0, 3], [2, 0]), batch_of([3, 0], [0, 2])
    said = cache(first, teacher.of(first))
    again = cache(second, teacher.of(second))
    assert teacher.asked == 1
    assert [tensor.shape for tensor in again] == [(2, 2, 3), (2, 1)]
    assert all(torch.equal(one, other.flip(0)) for one, other in zip(again, said, strict=True))


def test_two_runs_do_not_begin_the_same_files(tmp_path, teacher):
    # the second waits until the first has begun them, and finds them: to begin them anew would cut them off
    batch = batch_of([0, 3], [2, 0])
    caches = [TeacherCache(tmp_path / "views", num_samples=4, num_views=3, identity={}) for _ in range(2)]
    with holder(tmp_path / "views/.lock", 1.0):
        started = time.monotonic()
        caches[0](batch, teacher.of(batch))
        assert time.monotonic() - started > 0.9
    kept = (tmp_path / "views/values.f32").stat().st_ino
    caches[1](batch, teacher.of(batch))
    assert caches[1].num_kept() == 2
    assert (tmp_path / "views/values.f32").stat().st_ino == kept


def test_a_batch_with_one_unknown_view_is_asked_for_whole(tmp_path, teacher):
    cache = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={})
    for batch in (batch_of([0], [0]), batch_of([0, 1], [0, 1]), batch_of([0, 1], [0, 2])):
        torch.testing.assert_close(cache(batch, teacher.of(batch)), teacher.of(batch)())
    assert teacher.asked == 3 + 3  # three by the cache, three by this test


def test_what_was_said_outlives_the_process_unless_something_else_is_asked(tmp_path, teacher):
    def fresh(name):
        cache, first, second = TeacherCache(tmp_path, 4, 3, {"teacher": name}), batch_of([0], [0]), batch_of([1], [1])
        for batch in (first, second):  # the first batch of a process is always asked for: it tells the shapes
            cache(batch, teacher.of(batch))

    fresh("a")
    assert teacher.asked == 2
    fresh("a")
    assert teacher.asked == 2 + 1
    fresh("b")
    assert teacher.asked == 2 + 1 + 2  # a's answers are not b's


def test_what_is_not_answered_takes_no_memory(tmp_path, teacher):
    cache = TeacherCache(tmp_path, num_samples=1_000_000, num_views=8, identity={})
    batch = batch_of([999_999], [7])
    cache(batch, teacher.of(batch))
    values = tmp_path / "values.f32"
    assert values.stat().st_size == 8_000_000 * 7 * 4
    assert values.stat().st_blocks * 512 < 1 << 20  # a hole but for one page
    assert np.count_nonzero(np.fromfile(tmp_path / "sums.u32", np.uint32)) == 1


def test_a_damaged_answer_is_asked_for_again(tmp_path, teacher):
    cache, batch = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={}), batch_of([1, 2], [1, 0])
    said = cache(batch, teacher.of(batch))
    values = np.memmap(tmp_path / "values.f32", np.float32, "r+", shape=(12, 7))
    values[4, 3] += 1  # of image 1 in view 1
    values.flush()
    again = cache(batch, teacher.of(batch))
    assert teacher.asked == 2
    assert all(torch.equal(one, other) for one, other in zip(said, again, strict=True))
