"""A thread makes the next batch ready, and nothing else changes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attar.config import OptimConfig
from attar.errors import DataError, TrainingError
from attar.methods import Proteus
from attar.methods.teacher_cache import Answers, TeacherCache
from attar.train import StepRecord, TrainState, build_state
from attar.train.ahead import one_ahead
from attar.train.callbacks import NoEffect
from attar.types import Batch
from train.test_loop import batches, method_of, run


def test_batches_come_in_order_each_fetched_by_another_thread_while_the_last_is_used() -> None:
    fetched, threads = [threading.Event() for _ in range(4)], []

    def fetch(batch: Batch) -> Batch:
        threads.append(threading.current_thread())
        fetched[batch.step].set()
        return batch

    steps = []
    for batch in one_ahead(batches(4), fetch):
        steps.append(batch.step)
        if batch.step < 3:
            assert fetched[batch.step + 1].wait(timeout=10)  # before this one is done with
    assert steps == [0, 1, 2, 3]
    here, *others = threads
    assert here is threading.current_thread()
    assert len(set(others)) == 1
    assert here not in others


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


def test_who_stops_early_waits_for_what_is_being_read() -> None:
    may_end = threading.Event()

    def fetch(batch: Batch) -> Batch:
        if batch.step == 1:
            assert may_end.wait(timeout=10)
        return batch

    stream = batches(5)
    ahead = one_ahead(stream, fetch)
    assert next(ahead).step == 0
    threading.Timer(0.2, may_end.set).start()
    ahead.close()
    assert may_end.is_set()
    assert next(stream).step == 2  # one was on its way, no more; and nobody is at it now


def test_a_run_from_kept_answers_read_ahead_has_the_weights_of_one_without(tmp_path: Path) -> None:
    # the same 8 views in each step: what the second step reads ahead the first one may be about to answer
    weights, known = [], []
    for ahead in (True, False):
        method = method_of(Watched)
        method.cache = TeacherCache(tmp_path / str(ahead), num_samples=8, num_views=1, identity={})
        state = build_state(method.learner, method.student, OptimConfig())
        run(method, state, same_views(6), 6, ahead=ahead)
        assert method.cache.num_kept() == 8
        weights.append(state.tensors())
        known.append(method.known)
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert known[0][-4:] == [8] * 4
    assert known[1] == [None] * 6


class Watched(Proteus):
    """Proteus that remembers how many answers each batch brought along."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.known: list[int | None] = []

    def answers(self, batch: Batch) -> Answers:
        self.known.append(None if batch.kept is None else int(batch.kept.is_known.sum()))
        return super().answers(batch)


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_ends_with_the_run(fails: bool) -> None:
    class Looks(NoEffect):
        def on_step(self, state: TrainState, record: StepRecord) -> None:
            assert threads()
            if fails and state.step == 2:
                raise TrainingError("enough")

    method = method_of()
    state = build_state(method.learner, method.student, OptimConfig())
    with pytest.raises(TrainingError) if fails else contextlib.nullcontext() as caught:  # which keeps fit's frame
        run(method, state, batches(9), 3, Looks(), ahead=True)
    assert not threads()
    assert state.step == (2 if fails else 3)
    assert caught or not fails


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("next batch")]


def same_views(steps: int) -> Iterator[Batch]:
    first = next(batches(1))
    for step in range(steps):
        yield Batch(first.views, first.samples, first.view_ids, first.positions, step, first.global_batch_size)
