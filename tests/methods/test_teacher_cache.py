"""The teacher is asked once for each view, and what it said is what comes back."""

from __future__ import annotations

import os
import resource
import time

import numpy as np
import pytest
import torch

from attar.errors import RunDirectoryError
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
    batch = batch_of([1, 2], [1, 0])
    said = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={})(batch, teacher)
    values = np.memmap(tmp_path / "values.f32", np.float32, "r+", shape=(12, 7))
    values[4, 3] += 1  # of image 1 in view 1
    values.flush()
    teacher.asked.clear()
    later = TeacherCache(tmp_path, num_samples=4, num_views=3, identity={})
    for _ in range(2):  # what is mended is whole
        again = later(batch, teacher)
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


def test_what_was_read_ahead_is_not_read_again_and_what_was_not_known_then_is(tmp_path, teacher):
    first, second = batch_of([1, 2], [1, 0]), batch_of([2, 3], [0, 2])
    TeacherCache(tmp_path, 4, 3, {})(first, teacher)
    cache = TeacherCache(tmp_path, 4, 3, {})
    assert cache.fetch(first) is first  # before the files are open there is nothing to read
    cache(batch_of([0], [0]), teacher)
    ahead, unknown = cache.fetch(first), cache.fetch(second)
    assert ahead.kept.is_known.tolist() == [True, True]
    assert unknown.kept.is_known.tolist() == [True, False]
    cache(second, teacher)
    np.memmap(tmp_path / "values.f32", np.float32, "r+", shape=(12, 7))[:] = 7
    teacher.asked.clear()
    said = cache(ahead, teacher)
    assert teacher.asked == []
    assert all(torch.equal(one, other) for one, other in zip(said, Teacher()(first.views), strict=True))
    said = cache(unknown, teacher)  # read once more, and overwritten by now
    assert teacher.asked == [32]
    assert (said[0][0] == 7).all()  # whose checksum was right when it was first read


def test_large_answers_are_whole_or_asked_for(tmp_path):
    # rows of 1.2 MB; two of them damaged, one of those asked for twice
    said, asked = torch.randn(12, 300, 1000), []

    def ask(views):
        rows = (views[:, 0, 0, 0] // 10 * 3 + views[:, 0, 0, 0] % 10).long()
        asked.append(rows.tolist())
        return (said[rows],)

    everything = batch_of([row // 3 for row in range(12)], [row % 3 for row in range(12)])
    assert torch.equal(TeacherCache(tmp_path, 4, 3, {})(everything, ask)[0], said)
    values = np.memmap(tmp_path / "values.f32", np.float32, "r+", shape=(12, 300_000))
    values[[5, 8], [0, -1]] += 1
    rows = [11, 8, 0, 5, 8, *range(12)]
    asked.clear()
    found = TeacherCache(tmp_path, 4, 3, {})(batch_of([row // 3 for row in rows], [row % 3 for row in rows]), ask)
    assert torch.equal(found[0], said[rows])
    assert asked == [[8, 5]]


def test_a_disk_that_takes_no_more_is_told_and_what_was_kept_stays(tmp_path, teacher):
    # a file says so; a map ends the process
    cache = TeacherCache(tmp_path, 4, 3, {})
    cache(batch_of([0], [0]), teacher)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7 * 4 * 6, limits[1]))  # half of the file
    try:
        with pytest.raises(RunDirectoryError, match=r"(?s)cannot write .*Free some space"):
            cache(batch_of([3], [2]), teacher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    later = TeacherCache(tmp_path, 4, 3, {})
    assert later.num_kept() == 1
    teacher.asked.clear()
    later(batch_of([0, 3], [0, 2]), teacher)
    assert teacher.asked == [32]


@pytest.mark.parametrize("name", ["values.f32", "sums.u32"])
@pytest.mark.parametrize("happens", ["lost", "replaced"])
def test_a_file_that_goes_away_in_a_run_costs_questions_alone(name, happens, tmp_path, teacher):
    # what is written goes to the file of that name, what is read comes from the one that was opened
    cache = TeacherCache(tmp_path, 4, 3, {})
    cache(batch_of([0], [0]), teacher)
    copy = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if happens == "replaced":
        (tmp_path / name).write_bytes(copy)
    for batch in (batch_of([1], [1]), batch_of([1, 2], [1, 0]), batch_of([1, 0], [1, 0])):
        for fetched in (batch, cache.fetch(batch)):
            said = cache(fetched, teacher)
            assert all(torch.equal(one, other) for one, other in zip(said, Teacher()(batch.views), strict=True))


def test_another_run_that_begins_the_folder_anew_leaves_this_one_its_answers(tmp_path, teacher):
    ours, theirs = (TeacherCache(tmp_path, 4, 3, {"teacher": name}) for name in "ab")
    batch, more = batch_of([0, 1], [0, 1]), batch_of([2, 3], [0, 0])
    for _ in range(2):
        said = ours(batch, teacher)  # the second time verified
    longer = [theirs(one, lambda views: (teacher(views)[1].expand(-1, 9),)) for one in (batch, more)]
    ours(more, teacher)
    teacher.asked.clear()
    assert all(torch.equal(one, other) for one, other in zip(ours(batch, teacher), said, strict=True))
    for one, known in zip((batch, more), longer, strict=True):
        assert torch.equal(theirs(one, teacher)[0], known[0])
    assert teacher.asked == []


@pytest.mark.parametrize("name", ["values.f32", "sums.u32"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_of_a_file_cut_short_the_lost_answers_are_asked_for_again(name, share, tmp_path, teacher):
    batch = batch_of([0, 3], [0, 2])
    said = TeacherCache(tmp_path, 4, 3, {})(batch, teacher)
    os.truncate(tmp_path / name, int(share * (tmp_path / name).stat().st_size))
    teacher.asked.clear()
    later = TeacherCache(tmp_path, 4, 3, {})
    later.num_kept()
    assert all(torch.equal(one, other) for one, other in zip(later(batch, teacher), said, strict=True))
    assert teacher.asked == ([32] if share else [0, 32])
