"""How much memory processes hold, as Linux counts it; None where the system does not tell."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")
_FORGET_PEAK = "5"  # of the file clear_refs, man proc


def peak_resident() -> int | None:
    """Bytes of this process that were in memory at most, since it began or since `forget_peak`."""
    return _kibibytes(_PROCESSES / "self" / "status", "VmHWM:")


def forget_peak() -> None:
    """Let the peak be what is in memory now, where the system allows it."""
    with suppress(OSError):
        (_PROCESSES / "self" / "clear_refs").write_text(_FORGET_PEAK)


def own_share(process: int) -> int | None:
    """Bytes of a process of this user that are in memory; what several share counts by a part for each."""
    return _kibibytes(_PROCESSES / str(process) / "smaps_rollup", "Pss:")


def _kibibytes(file: Path, name: str) -> int | None:
    with suppress(OSError):
        line = next((line for line in file.read_text().splitlines() if line.startswith(name)), None)
        return None if line is None else int(line.split()[1]) * 1024
    return None
