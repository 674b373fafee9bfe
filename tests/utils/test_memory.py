"""What Linux says of memory; elsewhere these functions say nothing."""

import subprocess
import sys

import numpy as np
import pytest

from attar.utils.memory import forget_peak, own_share, peak_resident

BIG = 64 << 20  # bytes
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as Linux counts")


def test_the_peak_stays_when_memory_is_given_back():
    held = np.ones(BIG, np.uint8)
    reached = peak_resident()
    assert reached > held.nbytes
    del held
    assert peak_resident() == pytest.approx(reached, rel=0.01)  # processors count apart, and add up now and then


def test_a_forgotten_peak_is_what_is_held_now():
    np.ones(BIG, np.uint8).sum()  # held and given back
    high = peak_resident()
    forget_peak()
    low = peak_resident()
    assert high - low > BIG // 2
    held = np.ones(BIG, np.uint8)
    assert peak_resident() - low == pytest.approx(held.nbytes, rel=0.1)


def test_another_process_has_a_share_until_it_is_gone():
    command = [sys.executable, "-c", f"held = b'x' * {BIG}; input('ready')"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.read(5) == b"ready"
    share = own_share(child.pid)
    child.communicate(b"\n")
    assert share > BIG // 2
    assert own_share(child.pid) is None
