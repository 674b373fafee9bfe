"""A thread makes the next batch ready, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attar.config import OptimConfig
from attar.errors import DataError
from attar.methods.teacher_cache import TeacherCache
from attar.train import build_state
from attar.train.ahead import one_ahead
from attar.types import Batch
from train.test_loop import batches, method_of, run


def test_batches_come_in_order_each_fetched_by_another_thread_while_the_last_is_used() -> None:
    fetched, threads = [threading.Event() for _ in range(4)], set()

    def fetch(batch: Batch) -> Batch:
        threads.add(threading.current_thread())
        fetched[batch.step].set()
        return batch

    steps = []
    for batch in one_ahead(batches(4), fetch):
        steps.append(batch.step)
        if batch.step < 3:
            assert fetched[batch.step + 1].wait(timeout=10)  # before this one is done with
    assert steps == [0, 1, 2, 3]
    assert len(threads) == 1
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("fails_in", ["reading", "fetching"])
def test_an_error_comes_where_its_batch_would_have_come(fails_in: str) -> None:
    def read() -> Iterator[Batch]:
        yield from batches(2)
        if fails_in == "reading":
            raise DataError("image after image is bad")
        yield from batches(3, start=2)

    def fetch(batch: Batch) -> Batch:
        if batch.step == 2:
            raise DataError("image after image is bad")
        return batch

    ahead = one_ahead(read(), fetch)
    assert [next(ahead).step, next(ahead).step] == [0, 1]
    with pytest.raises(DataError, match="image after image"):
        next(ahead)


def test_who_stops_early_waits_for_the_thread() -> None:
    ended = []

    def read() -> Iterator[Batch]:
        try:
            yield from batches(5)
        finally:
            ended.append(threading.current_thread())

    stream = read()
    ahead = one_ahead(stream, lambda batch: batch)
    assert next(ahead).step == 0
    ahead.close()
    assert next(stream).step == 2  # one was on its way, no more; and nobody is at it now
    assert not [t for t in threading.enumerate() if t.name.startswith("next batch")]
    stream.close()
    assert ended == [threading.current_thread()]


def test_a_run_from_kept_answers_read_ahead_has_the_weights_of_one_without(tmp_path: Path) -> None:
    # the same 8 views in each step: what the second step reads ahead the first one is about to answer
    weights = []
    for is_ahead in (True, False):
        method = method_of()
        method.cache = TeacherCache(tmp_path / str(is_ahead), num_samples=8, num_views=1, identity={})
        state, stream = build_state(method.learner, method.student, OptimConfig()), same_views(6)
        run(method, state, one_ahead(stream, method.fetch) if is_ahead else stream, 6)
        assert method.cache.num_kept() == 8
        weights.append(state.tensors())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def same_views(steps: int) -> Iterator[Batch]:
    first = next(batches(1))
    for step in range(steps):
        yield Batch(first.views, first.samples, first.view_ids, first.positions, step, first.global_batch_size)
