"""From marks of a stopwatch to seconds of a step."""

import pytest

from attar.recipes.planning.probe import Stopwatch, steady_seconds
from attar.train import StepRecord, TrainState


def test_a_step_takes_the_median():
    assert steady_seconds([1.0, 1.0, 9.0, 1.2, 1.1], workers=0) == 1.1


def test_loader_processes_that_hand_over_together_are_taken_together():
    assert steady_seconds([0.1, 0.1, 0.1, 3.7] * 5, workers=4) == pytest.approx(1.0)  # a single step's median is 0.1


def test_of_fewer_steps_than_processes_all_count():
    assert steady_seconds([1.0, 3.0], workers=8) == 2.0


def test_the_watch_ends_the_training_after_the_last_step():
    state = TrainState(None, None, None, None, None)
    watch = Stopwatch(last=2)
    watch.on_start(state)
    watch.on_step(state, StepRecord(1))
    assert not state.has_converged
    watch.on_step(state, StepRecord(2))
    assert state.has_converged
    assert len(watch.marks) == 3
    assert watch.marks == sorted(watch.marks)
