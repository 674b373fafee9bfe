from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attar.data.labelled import Labelled
from attar.data.sources import PlaygroundSource
from attar.errors import ConfigError, RunDirectoryError
from attar.evaluation.costs import logistic_bytes, machine_bytes, told_disk, told_memory

GB = 10**9


def parts(train: int, val: int, classes: int) -> dict[str, Labelled]:
    names = tuple(str(number) for number in range(classes))
    rows = {name: np.arange(count) for name, count in (("train", train), ("val", val), ("test", 5))}
    return {name: Labelled(PlaygroundSource(0, len(r)), r, r % classes, names) for name, r in rows.items()}


def test_imagenet_takes_a_hundred_gigabytes() -> None:
    # by images alone it would be four; the test images have no part in it
    imagenet = parts(1_024_934, 256_233, 1000)
    assert 100 * GB < logistic_bytes(imagenet, 768) < 120 * GB
    with pytest.raises(ConfigError, match=r"about 114\.3 GB .*1,281,167 images x 1,000 classes.* has 64\.0 GB"):
        told_memory("logistic:imagenet", imagenet, 768, machine=64 * GB)
    assert "this machine has 256.0 GB" in str(told_memory("logistic:imagenet", imagenet, 768, machine=256 * GB))


def test_what_is_small_is_not_worth_a_line() -> None:
    assert told_memory("logistic:x", parts(800, 200, 10), 384) is None
    assert told_disk(10**8, Path("/")) is None


def test_features_that_do_not_fit_are_refused_before_they_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert told_disk(2 * GB, folder, free=3 * GB) == f"features take 2.0 GB in {folder}, where 3.0 GB are free"
    with pytest.raises(RunDirectoryError, match=r"3\.0 GB are free\. Point ATTAR_CACHE"):
        told_disk(4 * GB, folder, free=3 * GB)
    with pytest.raises(RunDirectoryError, match="are free"):
        told_disk(10**18, folder)


def test_the_machine_has_some_memory() -> None:
    assert 2**28 < machine_bytes() < 2**60
