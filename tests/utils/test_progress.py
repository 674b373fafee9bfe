"""Short jobs are silent, long ones say how far they are, and both give every item once."""

import signal

import pytest
from rich.console import Console

import attar.utils.progress as progress_module
from attar.errors import Interrupted, RunDirectoryError
from attar.utils.progress import Log, counting, duration, track
from attar.utils.signals import polite_stop


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


@pytest.fixture(params=["terminal", "file"])
def screen(request, monkeypatch, capsys):
    """Reads what is shown: on a terminal, and where output goes to a file."""
    console = Console(force_terminal=request.param == "terminal", width=100, highlight=False)
    monkeypatch.setattr(progress_module, "console", console)
    return lambda: capsys.readouterr().out


def slow(clock, count, seconds):
    for number in range(count):
        clock.now += seconds
        yield number


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0 s"), (0.4, "0 s"), (42, "42 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (60, "1 min 0 s")],
        *[(190, "3 min 10 s"), (3599, "59 min 59 s"), (3600, "1 h 0 min"), (7509, "2 h 5 min")],
        *[(86_399, "23 h 59 min"), (86_400, "1 d 0 h"), (97_200, "1 d 3 h"), (1_000_000, "11 d 13 h")],
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_short_job_shows_nothing(clock, screen):
    assert list(track(slow(clock, 19, 0.1), "embedding teacher", total=19, unit="batches")) == list(range(19))
    with counting("indexing train", unit="images") as show:
        for number in slow(clock, 19, 0.1):
            show(number)
    assert screen() == ""


def test_a_long_job_shows_how_far_it_is(clock, screen):
    assert list(track(slow(clock, 40, 0.5), "embedding teacher", total=40, unit="batches")) == list(range(40))
    shown = screen()
    assert "embedding teacher" in shown
    assert "2 batches/s" in shown


def test_lines_in_a_file_come_after_two_seconds_and_then_every_ten_with_rate_and_time_left(clock, capsys):
    list(track(slow(clock, 100, 0.5), "embedding teacher", total=100, unit="batches"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  embedding teacher  4/100  2 batches/s  eta 48 s"
    assert len(lines) == 5


def test_counting_shows_number_and_rate(clock, capsys):
    with counting("indexing train", unit="images") as show:
        for number in slow(clock, 24, 1.0):
            show(500 * (number + 1))
    assert capsys.readouterr().out.splitlines() == [
        "  indexing train  1,000 images  500 images/s",
        "  indexing train  6,500 images  500 images/s",
        "  indexing train  12,000 images  500 images/s",
    ]


def test_counting_takes_any_name(clock, screen):
    with counting("indexing [/bold] 100 %", unit="images") as show:
        for number in slow(clock, 14, 1.0):
            show(number)
    assert "indexing [/bold] 100 %" in screen()


def test_a_signal_stops_both_between_items():
    seen = []

    def work():
        for number in track(range(10), "embedding teacher", total=10, unit="batches"):
            seen.append(number)
            if number == 3:
                signal.raise_signal(signal.SIGTERM)

    with polite_stop():
        with pytest.raises(Interrupted) as caught:
            work()
        assert seen == [0, 1, 2, 3]
        assert caught.value.exit_code == 143
        assert "embedding teacher" in str(caught.value)
        with pytest.raises(Interrupted), counting("indexing train", unit="images") as show:
            show(1)


def test_an_error_in_the_job_passes(screen):
    def failing():
        yield 1
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        list(track(failing(), "embedding teacher", total=2, unit="batches"))


def test_the_log_says_and_writes_the_same(tmp_path, capsys):
    log = Log(tmp_path / "log.txt")
    log.say("  step 1  loss [0.412]  größe")
    log.say("two\nlines of any length " + "x" * 300)
    text = "  step 1  loss [0.412]  größe\ntwo\nlines of any length " + "x" * 300 + "\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == text


def test_the_log_keeps_the_reason_of_an_end_before_its_time(tmp_path, capsys):
    with pytest.raises(Interrupted), Log(tmp_path / "log.txt").last_words():
        raise Interrupted(signal.SIGINT, "stopped by SIGINT at step 3.\x1b[2J")
    assert (tmp_path / "log.txt").read_text() == "Interrupted: stopped by SIGINT at step 3.\\x1b[2J\n"
    with pytest.raises(RuntimeError), Log(tmp_path / "log.txt").last_words():
        raise RuntimeError("Connection closed by peer [127.0.0.1]\nwith a long tail")
    assert (tmp_path / "log.txt").read_text().endswith("\nRuntimeError: Connection closed by peer [127.0.0.1]\n")
    assert capsys.readouterr().out == ""
    for silent in (Log(), Log(tmp_path / "other.txt", is_silent=True), Log(tmp_path / "not/there/log.txt")):
        with pytest.raises(Interrupted), silent.last_words():
            raise Interrupted(signal.SIGINT, "stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_a_log_without_a_file_says_only(capsys):
    Log().say("x")
    assert capsys.readouterr().out == "x\n"


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path):
    with pytest.raises(RunDirectoryError, match="cannot write"):
        Log(tmp_path / "nowhere" / "log.txt").say("x")


def test_items_count_for_their_size(clock, screen):
    batches = [[0] * 64] * 9 + [[0] * 24]
    list(track((batches[number] for number in slow(clock, 10, 1)), "embedding", total=600, unit="images", size=len))
    assert "images/s" in (shown := screen())
    assert "/600" in shown
    assert "60 images/s" in shown or "64 images/s" in shown


def test_a_job_of_which_nothing_counts_yet_has_no_end_in_sight(clock, capsys):
    for _ in track(slow(clock, 2, 3), "embedding", total=2, unit="images", size=lambda item: item):  # items 0 and 1
        pass
    assert "embedding  0/2  0 images/s  eta unknown" in capsys.readouterr().out
