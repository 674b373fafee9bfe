"""What a run writes down and when: log, metrics, bad files, the best student, checkpoints."""

import json
import sys
from dataclasses import replace

import pytest

from attar.config import OptimConfig
from attar.errors import ConfigError, DataError
from attar.methods import Hint
from attar.train import StepRecord, build_state
from attar.train.callbacks import BadFiles, Checkpoints, ConsoleLog, Metrics, Monitor, TensorBoard
from attar.types import BadFile
from attar.utils.progress import Log
from small_models import TINY, backbone


@pytest.fixture(scope="module")
def built():
    student = backbone(TINY)
    return build_state(Hint(backbone(TINY), student).learner, student, OptimConfig())


@pytest.fixture
def state(built):
    built.step, built.notes = 0, {}
    return built


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.txt")


def record(step, **more):
    return StepRecord(step, loss=0.5, terms={"hint": 0.5}, lr=1e-3, images=8, seconds=0.5, **more)


def go(callback, state, steps, *, start=0):
    """Start a callback and tell it of the steps after `start`."""
    state.step = start
    callback.on_start(state)
    for state.step in range(start + 1, steps + 1):
        callback.on_step(state, record(state.step))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- console --------------------------------------------------------------------------------------------------------


def test_the_console_says_the_first_step_every_so_many_and_the_last(state, log):
    console = ConsoleLog(log, total_steps=7, every=3)
    go(console, state, 7)
    console.on_exit()
    said = log.path.read_text().splitlines()
    assert [line.split()[1] for line in said] == ["1", "3", "6", "7"]
    assert "loss 0.5 (hint 0.5)  lr 1.00e-03  16 img/s" in said[1]
    assert said[-1].endswith("eta 0 s")


def test_time_left_counts_the_steps_of_this_start_alone(state, log, monkeypatch):
    # by all steps done, a run resumed at step 90 would promise a tenth of the time that is left
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("attar.train.callbacks.time.perf_counter", lambda: next(clock))
    go(ConsoleLog(log, total_steps=100, every=1), state, 91, start=90)
    assert log.path.read_text().endswith("eta 1 min 30 s\n")  # nine steps of ten seconds


# --- metrics --------------------------------------------------------------------------------------------------------


def test_each_step_is_written_once_across_a_resume(state, tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", every=1, total_steps=9)
    go(metrics, state, 5)
    metrics.write({"step": 4, "student_knn_select": 0.5})
    with metrics.path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    go(metrics, state, 6, start=3)
    assert [line["step"] for line in lines(metrics.path)] == [1, 2, 3, 4, 5, 6]
    assert not any("student_knn_select" in line for line in lines(metrics.path))


def test_a_line_holds_what_curves_are_drawn_from(state, tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", every=2, total_steps=3)
    go(metrics, state, 3)
    first, second, last = lines(metrics.path)
    assert (first["step"], second["step"], last["step"]) == (1, 2, 3)  # the first: a curve begins where learning does
    assert first["loss"] == first["hint"] == 0.5
    assert first["images_per_second"] == 16.0
    assert {"lr", "grad_norm", "time"} <= first.keys()


def test_a_rate_is_that_of_all_steps_since_the_line_before(state, tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", every=2, total_steps=4)
    metrics.on_start(state)
    for step, seconds in enumerate((1.0, 3.0, 2.0, 0.0), 1):
        metrics.on_step(state, replace(record(step), seconds=seconds))
    assert [round(line["images_per_second"], 2) for line in lines(metrics.path)] == [8.0, 2.67, 8.0]


def test_tensorboard_that_is_not_there_is_named_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r'Try, .*pip install "\.\[tb\]"'):
        TensorBoard(tmp_path, every=1, total_steps=1)


# --- bad files ------------------------------------------------------------------------------------------------------


def found(callback, state, *samples):
    bad = [BadFile(sample, f"{sample}.png", f"{sample}.png: broken.") for sample in samples]
    callback.on_step(state, record(1, bad_files=bad))


def test_a_bad_file_is_written_down_once_also_across_a_resume(state, tmp_path, log):
    path = tmp_path / "bad.jsonl"
    first = BadFiles(path, log, num_samples=1000, max_share=0.01)
    first.on_start(state)
    found(first, state, 3, 5, 3)
    again = BadFiles(path, log, num_samples=1000, max_share=0.01)
    again.on_start(state)
    found(again, state, 5, 7)
    assert [line["sample"] for line in lines(path)] == [3, 5, 7]
    assert log.path.read_text() == "  unreadable file replaced: 3.png: broken. More go to bad.jsonl.\n"


@pytest.mark.parametrize(("share", "allowed"), [(0.0, 0), (0.001, 1), (0.05, 5)])  # of a hundred; a share allows one
def test_more_than_the_share_end_the_run(share, allowed, state, tmp_path, log):
    callback = BadFiles(tmp_path / "bad.jsonl", log, num_samples=100, max_share=share)
    callback.on_start(state)
    found(callback, state, *range(allowed))
    with pytest.raises(DataError, match=rf"{allowed + 1} of 100 images.*limit of {allowed}.*--max-bad-share"):
        found(callback, state, 99)


def test_those_of_an_earlier_start_count(state, tmp_path, log):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f'{{"sample": {number}, "path": "{number}.png"}}\n' for number in range(5)))
    callback = BadFiles(path, log, num_samples=100, max_share=0.05)
    callback.on_start(state)
    with pytest.raises(DataError, match="6 of 100"):
        found(callback, state, 99)


def test_those_that_are_mended_or_gone_count_no_longer(state, tmp_path, log):
    # the message says "mend or remove them": whoever did must be let on
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f'{{"sample": {number}, "path": "{number}.png"}}\n' for number in range(5)))
    still = {(1, "1.png"), (2, "2.png")}
    callback = BadFiles(path, log, num_samples=100, max_share=0.05, is_bad=lambda *what: what in still)
    callback.on_start(state)
    found(callback, state, 3, 98, 99)  # the third is broken again
    with pytest.raises(DataError, match="6 of 100"):
        found(callback, state, 97)


def test_what_shards_have_lost_counts_as_well(state, tmp_path, log):
    callback = BadFiles(tmp_path / "bad.jsonl", log, num_samples=100, max_share=0.05, lost=3)
    found(callback, state, 1, 2)
    with pytest.raises(DataError, match=r"3 of 100 images cannot be read and about 3 are lost .* limit of 5"):
        found(callback, state, 99)


# --- monitor --------------------------------------------------------------------------------------------------------


class Scores:
    """An evaluator whose scores to select by are given; those to report run the other way."""

    def __init__(self, *values):
        self.values = iter(values)
        self.judged = []

    def run(self, backbone):
        self.judged.append(backbone)
        value = next(self.values)
        yield "knn_select", value
        yield "knn_report", 1 - value


def monitor_of(tmp_path, log, scores, *, every=2, total_steps=5):
    kept = []
    metrics = Metrics(tmp_path / "metrics.jsonl", every=1, total_steps=total_steps)
    monitor = Monitor(
        scores,
        metrics,
        log,
        every=every,
        total_steps=total_steps,
        title="k-NN",
        beside="teacher 90.0",
        keep_best=lambda backbone, best: kept.append((backbone, dict(best))),
    )
    return monitor, kept


def test_the_best_by_selection_is_kept_be_it_student_or_average(state, tmp_path, log):
    # at steps 2, 4 and the last: the student's score, then that of its average; an equal one of a later step is better
    scores = Scores(0.3, 0.2, 0.3, 0.4, 0.4, 0.1)
    monitor, kept = monitor_of(tmp_path, log, scores)
    go(monitor, state, 5)
    assert [best for _, best in kept] == [
        {"selected": 0.3, "role": "student", "step": 2},
        {"selected": 0.3, "role": "student", "step": 4},
        {"selected": 0.4, "role": "ema", "step": 4},
        {"selected": 0.4, "role": "student", "step": 5},
    ]
    assert kept[0][0] is state.student
    assert kept[2][0] is state.ema.module
    assert state.notes == {"best": kept[3][1], "judged": 5}
    written = lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["student_knn_select"], line["ema_knn_report"]) for line in written] == [
        (2, 0.3, 0.8),
        (4, 0.3, 0.6),
        (5, 0.4, 0.9),
    ]
    assert "at step 4  student 30.0  ema 40.0  teacher 90.0" in log.path.read_text()


def test_of_two_that_are_equal_at_one_step_the_student_is_kept(state, tmp_path, log):
    monitor, kept = monitor_of(tmp_path, log, Scores(0.3, 0.3), every=5)
    go(monitor, state, 5)
    assert [best for _, best in kept] == [{"selected": 0.3, "role": "student", "step": 5}]


def test_a_judgement_that_was_cut_short_is_made_up_for_and_none_is_made_twice(state, tmp_path, log):
    scores = Scores(*[0.5] * 8)
    monitor, _ = monitor_of(tmp_path, log, scores)
    state.step = 4
    monitor.on_start(state)
    assert (state.notes["judged"], len(scores.judged)) == (4, 2)
    monitor.on_start(state)
    assert len(scores.judged) == 2
    state.step, state.notes = 3, {}
    monitor.on_start(state)
    assert len(scores.judged) == 2  # nothing was due


def test_an_untrained_student_is_not_judged_at_the_start(state, tmp_path, log):
    monitor, kept = monitor_of(tmp_path, log, Scores())
    monitor.on_start(state)
    assert kept == []


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_come_every_so_many_steps_and_when_it_stops(state, tmp_path):
    callback = Checkpoints(tmp_path, {"run_id": "a"}, every=2, keep=2)
    go(callback, state, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    callback.on_stop(state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    assert json.loads((tmp_path / "step-00000005/state.json").read_text())["run_id"] == "a"
