"""The first signal asks, the second ends; afterwards all is as it was."""

import contextlib
import signal
import subprocess
import sys
import threading

import pytest

from attar.errors import Interrupted
from attar.utils.signals import (
    handlers_kept,
    polite_stop,
    signals_postponed,
    stop_if_requested,
    stop_requested,
    stopped_at_once,
)
from small_runs import environment

both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@both
def test_the_first_signal_is_remembered_and_work_goes_on(number):
    with polite_stop():
        assert stop_requested() is None
        stop_if_requested("resting")
        signal.raise_signal(number)  # neither KeyboardInterrupt nor the end
        assert stop_requested() == number
    assert stop_requested() is None


@both
def test_a_safe_point_says_what_was_stopped_and_how_to_go_on(number):
    with polite_stop():
        signal.raise_signal(number)
        with pytest.raises(Interrupted) as caught:
            stop_if_requested("indexing images")
    assert str(caught.value) == f"stopped by {number.name} while indexing images. The same command goes on."
    assert caught.value.exit_code == 128 + number
    with polite_stop(keeps=False):
        signal.raise_signal(number)
        with pytest.raises(Interrupted, match="The same command begins anew"):
            stop_if_requested("exporting")


def test_handlers_come_back_also_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.suppress(ZeroDivisionError), polite_stop():
        assert signal.getsignal(signal.SIGTERM) not in before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_request_does_not_outlive_its_block():
    with polite_stop():
        signal.raise_signal(signal.SIGTERM)
    with polite_stop():
        assert stop_requested() is None


def test_in_another_thread_the_block_changes_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with polite_stop():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def ended(code, **changes):
    """Exit code and output of a process that runs `code`."""
    command = [sys.executable, "-c", f"import os, signal\nfrom attar.utils.signals import *\n{code}"]
    finished = subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, timeout=60, check=False
    )
    return finished.returncode, finished.stdout.strip()


TWICE = """
with polite_stop():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    print("here")
"""
WORKER = """
import multiprocessing, time
def work(pipe):
    leave_signals_to_parent(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
        time.sleep(0.1)
    pipe.send("still here")
    time.sleep(60)
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
worker = context.Process(target=work, args=(theirs,))
worker.start()
print(ours.recv())
worker.terminate()
worker.join(10)
print(worker.exitcode)
"""
CRASH = """
from torch.utils.data import DataLoader
batches = iter(DataLoader(range(9), num_workers=1, worker_init_fn=leave_signals_to_parent))
print(next(batches), flush=True)
raise ValueError
"""
FORKED = """
with polite_stop():
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(7 if stop_requested() is None else 8)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop_requested())
"""


def test_the_second_signal_ends_the_process():
    assert ended(TWICE) == (128 + signal.SIGTERM, "")


def test_under_torchrun_a_repeated_signal_is_the_same_request():
    assert ended(TWICE, TORCHELASTIC_RUN_ID="a") == (0, "here")


def test_a_worker_obeys_its_parent_and_nobody_else():
    assert ended(WORKER) == (0, "still here\n0")


def test_a_process_that_fails_ends_although_it_holds_a_loader():
    # catches workers that ignore their parent, which waits for them at its exit
    assert ended(CRASH) == (1, "tensor([0])")


def test_a_forked_child_takes_no_notice():
    assert ended(FORKED) == (0, "7 None")


def test_what_all_ranks_do_together_is_not_cut_by_one_of_them():
    with polite_stop():
        signal.raise_signal(signal.SIGTERM)
        with signals_postponed():
            stop_if_requested("judging")
        with pytest.raises(Interrupted, match="while judging"):
            stop_if_requested("judging")


def test_handlers_that_a_library_sets_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with handlers_kept():
        signal.signal(signal.SIGTERM, lambda number, frame: None)
    assert {number: signal.getsignal(number) for number in before} == before


@both
def test_what_has_no_safe_point_is_stopped_at_once_and_later_work_is_polite_again(number):
    def download() -> None:
        with stopped_at_once("fetching x"):
            signal.raise_signal(number)
            raise AssertionError("the signal was only remembered")

    with polite_stop():
        with pytest.raises(Interrupted, match=f"stopped by {number.name} while fetching x. The same command goes on."):
            download()
        signal.raise_signal(number)
        assert stop_requested() == number
