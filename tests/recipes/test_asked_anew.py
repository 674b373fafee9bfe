"""Which of what is stored the teacher is asked about anew."""

import tracemalloc

import pytest

from attar.recipes.asked_anew import some


@pytest.mark.parametrize(("count", "found"), [(0, 0), (3, 3), (64, 64), (300, 64), (12_000, 64), (10**9, 64)])
def test_as_many_as_there_are_or_64_each_once_and_always_the_same(count, found):
    rows = some(count)
    assert len(set(rows.tolist())) == len(rows) == found
    assert all(0 <= row < count for row in rows)
    assert some(count).tolist() == rows.tolist()


def test_those_of_no_use_are_passed_over():
    assert sorted(some(200, lambda row: row % 10 == 0)) == list(range(0, 200, 10))


def test_of_many_rows_no_list_is_made():
    tracemalloc.start()
    try:
        some(3_000_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
