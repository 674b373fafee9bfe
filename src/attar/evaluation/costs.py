"""What a protocol takes beyond the pass over the images, told and judged before that pass is paid for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from attar.data.labelled import Labelled
from attar.errors import ConfigError, RunDirectoryError

_ARRAYS = 10  # with a number for each image and class that a fit holds at its peak: 9 to 14 were measured
_COPIES = 3  # of the features: stored, put together, in the solver's coordinates
_WORTH_TELLING = 1 << 30
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def logistic_bytes(parts: Mapping[str, Labelled], width: int) -> int:
    """About how much memory a logistic regression takes, whose final fit is on `train` and `val`.

    Args:
        parts: Images with labels, by name.
        width: Channels of a feature.
    """
    images, classes = len(parts["train"]) + len(parts["val"]), len(parts["train"].class_names)
    return images * (_ARRAYS * 8 * classes + _COPIES * 4 * width)


def told_memory(task: str, parts: Mapping[str, Labelled], width: int, *, machine: int | None = None) -> str | None:
    """A line for people about a logistic regression that takes a gigabyte or more, else None.

    Args:
        task: Its name.
        parts: Its images with labels, by name.
        width: Channels of a feature.
        machine: Bytes of memory that there are; by default this machine's.

    Raises:
        ConfigError: If it takes more than there is.
    """
    needed, machine = logistic_bytes(parts, width), machine_bytes() if machine is None else machine
    if needed < _WORTH_TELLING:
        return None
    images, classes = len(parts["train"]) + len(parts["val"]), len(parts["train"].class_names)
    told = f"{task} takes about {_gb(needed)} of memory ({images:,} images x {classes:,} classes in float64)"
    if needed > machine:
        raise ConfigError(
            f"{told}, and this machine has {_gb(machine)}. Take linear: or knn: in its place, which read as they go,"
            " or a share of a folder's images (DIR?images=0.1)."
        )
    return f"{told}; this machine has {_gb(machine)}"


def told_disk(needed: int, folder: Path, *, free: int | None = None) -> str | None:
    """A line for people about features that take a gigabyte or more on the disk, else None.

    Args:
        needed: Bytes of features that are still to be stored.
        folder: Where.
        free: Bytes that are free there; by default as the disk says.

    Raises:
        RunDirectoryError: If they take more than is free.
    """
    if needed < _WORTH_TELLING:
        return None
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free if free is None else free
    told = f"features take {_gb(needed)} in {folder}"
    if needed > free:
        raise RunDirectoryError(
            f"{told}, where {_gb(free)} are free. Point ATTAR_CACHE to a larger disk, delete features of other models"
            " there, or take fewer random views (--linear.views)."
        )
    return f"{told}, where {_gb(free)} are free"


def machine_bytes() -> int:
    """Memory of this machine, or of the container that this process may use."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        return min(whole, int(_CGROUP.read_text()))
    return whole


def _gb(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"
