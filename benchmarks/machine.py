"""The machine and the versions that a benchmark's figures are from, as its result file has them."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attar import __version__


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, threads, GPU, memory, load, and the versions of Python, attar, torch and other packages."""
    import torch  # late: what a benchmark measures in its own process shall not hold it

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": platform.system(),
        "processor": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "attar": __version__,  # a checkout will do, nothing need be installed
    } | {name: version(name) for name in ("torch", *packages)}


def given(args: argparse.Namespace) -> str:
    """All of a benchmark's arguments but places and what prints a table, as its command line has them."""
    words = []
    for name, value in vars(args).items():
        if value is None or isinstance(value, Path | bool):
            continue
        values = value if isinstance(value, list) else [value]
        words.append(f"--{name.replace('_', '-')} {shlex.join(map(str, values))}")
    return " ".join(words)


def processor() -> str:
    """Its name as Linux has it, else its architecture."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
