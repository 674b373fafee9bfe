"""How a loader's worker begins: what it frees it uses again."""

import platform
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_that_is_freed_is_used_again_without_asking_the_system():
    program = textwrap.dedent(
        """
        import resource
        from attar.utils.workers import keep_freed_memory

        def interrupts():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(20):
                blocks = [bytearray(size << 20) for size in (1, 3, 8)]  # 12 MB, 3,000 pages
                del blocks
            return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20

        given_back = interrupts()
        keep_freed_memory()
        interrupts()
        print(given_back, interrupts())
        """
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    given_back, kept = map(float, found.stdout.split())
    assert kept < 100 < given_back
