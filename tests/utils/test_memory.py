"""What Linux says of memory; elsewhere these functions say nothing."""

import subprocess
import sys

import pytest

from attar.utils.memory import own_share

BIG = 64 << 20  # bytes
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux counts")


def alone(code: str) -> list[int]:
    """Integers that a process of its own prints, without what a long session holds and what Linux takes from it."""
    code = f"from attar.utils.memory import forget_peak, peak_resident\nBIG = {BIG}\n{code}"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(word) for word in finished.stdout.split()]


def test_the_peak_stays_when_memory_is_given_back():
    reached, later = alone("held = b'x' * BIG; print(peak_resident()); del held; print(peak_resident())")
    assert reached > BIG
    assert later == pytest.approx(reached, rel=0.01)  # processors count apart, and add up now and then


def test_a_forgotten_peak_is_what_is_held_now():
    high, low, again = alone(
        "held = b'x' * BIG; del held; print(peak_resident()); forget_peak(); print(peak_resident())\n"
        "held = b'x' * BIG; print(peak_resident())"
    )
    assert high - low > BIG // 2
    assert again - low == pytest.approx(BIG, rel=0.1)


def test_another_process_has_a_share_until_it_is_gone():
    command = [sys.executable, "-c", f"held = b'x' * {BIG}; input('ready')"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.read(5) == b"ready"
    share = own_share(child.pid)
    child.communicate(b"\n")
    assert share > BIG // 2
    assert own_share(child.pid) is None
